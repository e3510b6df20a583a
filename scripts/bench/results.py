"""What a benchmark prints: rows of a table, the same rows as JSON, and where they were made."""

import dataclasses
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from rich import box
from rich.table import Table

import deltakv_jax

COLUMNS = ("part", "shape", "what", "figure", "ratio", "goal", "met", "against")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
      part: the part of the benchmark.
      shape: the named shape.
      what: what was measured, mostly the cache's format.
      figure: the median, in `unit`.
      unit: of the figure.
      ratio: to what `against` names, or None.
      against: what the ratio is to, and what the reader should know.
      least: the goal is a ratio of at least this, if not None.
      most: the goal is a ratio of at most this, if not None.
    """

    part: str
    shape: str
    what: str
    figure: float
    unit: str
    ratio: float | None = None
    against: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def goal(self) -> str:
        """The goal in words, empty where there is none."""
        at_least = [] if self.least is None else [f"≥ {self.least:.2f}"]
        at_most = [] if self.most is None else [f"≤ {self.most:.2f}"]
        return ", ".join(at_least + at_most)

    @property
    def met(self) -> bool | None:
        """Whether the ratio is within the goal; None where there is no goal."""
        if self.ratio is None or not self.goal:
            return None
        at_most = float("inf") if self.most is None else self.most
        return (self.least or 0) <= self.ratio <= at_most


def table(rows: Sequence[Row]) -> Table:
    """The rows in order."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for name in COLUMNS:
        justify = "right" if name in ("figure", "ratio") else "left"
        made.add_column(name, justify=justify, no_wrap=name != "against")
    for row in rows:
        made.add_row(*_cells(row))
    return made


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    met = {True: "yes", False: "NO", None: ""}[row.met]
    figure = f"{row.figure:.4g} {row.unit}"
    return (row.part, row.shape, row.what, figure, ratio, row.goal, met, row.against)


def to_json(rows: Sequence[Row], made_on: Mapping[str, object]) -> str:
    """The rows, and the `surroundings` that they were made in; a NaN is an error."""
    plain = [{**dataclasses.asdict(row), "goal": row.goal, "met": row.met} for row in rows]
    return json.dumps({"rows": plain, **made_on}, indent=2, allow_nan=False) + "\n"


def surroundings() -> dict:
    """What figures depend on: the machine, its load average (1 minute) and the versions."""
    return {
        "device": jax.devices()[0].device_kind,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "version": deltakv_jax.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit() -> str | None:
    """The commit that is checked out, "-dirty" if changed since; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    folder = Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
