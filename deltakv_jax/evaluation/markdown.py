"""Tables of Markdown files, made from the JSON of runs and benchmarks: no figure is typed.

A region of a file begins with a line that names JSON files, relative to the file's own folder, and
ends with another:

    <!-- table: results/demo.json results/tiny1m.json -->
    <!-- end -->

What stands between the two is replaced by the table. The files hold runs (from `report.to_json`) or
rows of a speed benchmark, all of a region the same. A word before the files names another kind of
table, which the caller knows how to make.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import protocol, reading, report
from deltakv_jax.evaluation.results import Row, Run

RUN_COLUMNS = (
    "model, text, context", "format", "bits", "perplexity", "change", "95 % interval", "mean KLD",
    "same top",
)  # fmt: skip
SPEED_COLUMNS = ("what", "figure", "of")
BASELINE = "plain: "  # begins the names of the forms in which a plain bf16 cache was tried

Makers = Mapping[str, Callable[[dict[Path, dict[str, Any]]], str]]
"""By the word that names a kind of table: what makes it of the files of a region."""

_REGION = re.compile(
    r"^(?P<begin><!-- table: (?P<names>[^\n]+?) -->\n)(?P<body>.*?)(?P<end>^<!-- end -->$)",
    re.DOTALL | re.MULTILINE,
)
_MARKER = re.compile(r"^<!-- (?:table:.*|end) -->$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """What a table shows of a benchmark's figure; `against` says what the ratio is to."""

    part: str
    shape: str
    what: str
    figure: float
    unit: str
    ratio: float | None
    against: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """Where and when a benchmark ran."""

    device: str
    cores: int
    jax: str
    date: str


def filled(path: Path, makers: Makers | None = None) -> str:
    """The content of a Markdown file with every table made anew; `makers` of kinds of one's own."""
    content = _read(path)
    _check_markers(path, content)
    return _REGION.sub(lambda region: _refilled(path, region, makers or {}), content)


def stale(path: Path, makers: Makers | None = None) -> list[str]:
    """A line for each region of a Markdown file that is not what its JSON gives."""
    content = _read(path)
    _check_markers(path, content)
    return [
        f"{path}:{content[: region.start()].count(chr(10)) + 1}: the table of {region['names']} "
        "is out of date"
        for region in _REGION.finditer(content)
        if _refilled(path, region, makers or {}) != region[0]
    ]


def runs_table(runs: Sequence[Run]) -> str:
    """A line for each format of each run; the first of a run is what its others are against."""
    return table(RUN_COLUMNS, [_run_line(run, row) for run in runs for row in run.rows])


def speed_table(rows: Sequence[SpeedRow], made: Made) -> str:
    """A line for each figure, and where they were made; forms of the baseline are left out."""
    shown = [row for row in rows if not row.what.startswith(BASELINE)]
    day = made.date.split("T")[0]
    where = f"Made on {made.device} with {made.cores} cores, jax {made.jax}, {day}."
    return f"{table(SPEED_COLUMNS, [_speed_line(row) for row in shown])}\n{where}\n"


def _refilled(path: Path, region: re.Match[str], makers: Makers) -> str:
    names = region["names"].split()
    make = makers[names.pop(0)] if names[0] in makers else _table_of
    documents = {path.parent / name: reading.read_object(path.parent / name) for name in names}
    return f"{region['begin']}\n{make(documents)}\n{region['end']}"


def _table_of(documents: dict[Path, dict[str, Any]]) -> str:
    """The table of all files of a region."""
    if all("runs" in document for document in documents.values()):
        return runs_table(
            [run for path, one in documents.items() for run in reading.runs(one, path)]
        )
    if len(documents) == 1:
        ((path, document),) = documents.items()
        if "rows" in document:
            rows = reading.records(SpeedRow, document, "rows", path)
            return speed_table(rows, reading.record(Made, document, f"{path}: "))
    names = ", ".join(str(path) for path in documents)
    raise UserError(f'{names}: expected "runs" in all, or a single file with "rows"')


def _run_line(run: Run, row: Row) -> tuple[str, ...]:
    measured = f"{run.model}, {run.text}, {run.ctx}{_qualities(run)}"
    figures = (measured, f"`{row.kv}`", f"{row.bits_per_value:.4g}", f"{row.ppl:.4f}")
    if row is run.rows[0]:
        return (*figures, "", "", "", "")
    interval = row.change_interval
    return (
        *figures,
        f"{row.change.value:+.2f} % ± {row.change.stderr:.2f}",
        "" if interval is None else f"{report.span(interval)} %",
        report.nats(row.kld_mean),
        f"{100 * row.same_top:.1f} %",
    )


def _qualities(run: Run) -> str:
    """How a run differs from the usual."""
    scored = "" if run.protocol == protocol.DEFAULT else f", {run.protocol}"
    fed = ", one token at a time" if run.sequential else ""
    return scored + fed + ("" if run.reads == "cache" else f", {run.reads} reads")


def _speed_line(row: SpeedRow) -> tuple[str, ...]:
    against = row.against.split(";")[0]  # behind it stands what explains the figure
    base = against.replace(BASELINE, "plain bf16, the fastest form: ")
    ratio = "" if row.ratio is None else f"{row.ratio:.2f} of {base}"
    return f"{row.part}, `{row.shape}`, `{row.what}`", f"{row.figure:.3g} {row.unit}", ratio


def table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, each line of it ended."""
    cells = lambda line: "".join(f" {cell} |" if cell else " |" for cell in line)
    return "".join(f"|{cells(line)}\n" for line in (names, ["---"] * len(names), *lines))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _check_markers(path: Path, content: str) -> None:
    """Each table's marker is followed by its own end, and no end stands alone."""
    expected = "table"
    for marker in _MARKER.finditer(content):
        found = "end" if marker[0] == "<!-- end -->" else "table"
        if found != expected:
            line = content[: marker.start()].count("\n") + 1
            raise UserError(f"{path}:{line}: {marker[0]} where a {expected!r} marker should come")
        expected = "end" if found == "table" else "table"
    if expected == "end":
        raise UserError(f"{path}: the last table has no line <!-- end -->")
