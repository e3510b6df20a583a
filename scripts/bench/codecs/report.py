"""Figures for the reader: a table for people, JSON for programs, a rate-distortion plot."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deltakv_jax.evaluation import files
from deltakv_jax.evaluation.report import nats, plain_table
from deltakv_jax.evaluation.statistics import Estimate, percent
from scripts.bench.codecs.measuring import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("candidate", "bits", "KLD", "±", "99.9 %", "top %", "ppl %", "±", "95 % interval")
MARKERS = "osD^vPX*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What was measured on one text.

    Attributes:
      model, weights: the model's name, and the checksum of its weights.
      text, text_sha256: the text's name and hash.
      ctx, chunks: tokens of a chunk, and how many.
      calibration: the text that means and transforms were learned of, and its chunks.
      figures: of each candidate.
    """

    model: str
    weights: str
    text: str
    text_sha256: str
    ctx: int
    chunks: int
    calibration: str
    figures: tuple[Figures, ...] = ()

    @property
    def title(self) -> str:
        """For the head of a table."""
        return f"{self.model} on {self.text}: {self.chunks} chunks of {self.ctx} tokens"


def table(figures: Sequence[Figures]) -> Table:
    """A row for each candidate, a blank line between families."""
    made = plain_table(*COLUMNS)
    for before, one in zip([None, *figures], figures, strict=False):
        if before and before.family != one.family:
            made.add_section()
        made.add_row(*_cells(one))
    return made


def _cells(one: Figures) -> tuple[str, ...]:
    change = percent(Estimate(one.delta_ln_ppl, one.delta_ln_ppl_stderr))
    low, high = (
        "" if bound is None else f"{percent(Estimate(bound, 0.0)).value:+.2f}"
        for bound in (one.delta_ln_ppl_low, one.delta_ln_ppl_high)
    )
    return (
        one.candidate,
        f"{one.bits:.3f}",
        nats(one.kld_mean),
        nats(one.kld_stderr),
        nats(one.kld_p999),
        f"{100 * one.same_top:.1f}",
        f"{change.value:+.2f}",
        f"{change.stderr:.2f}",
        f"{low} … {high}",
    )


def to_json(runs: Sequence[Run], made_on: dict[str, Any]) -> bytes:
    """The runs and what they were made with; a NaN is an error."""
    plain = {"runs": [dataclasses.asdict(run) for run in runs], **made_on}
    return (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode()


def save_plot(runs: Sequence[Run], path: Path) -> None:
    """Divergence against bits, a panel for each run; what packs one side alone is left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(runs), 5.6), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for axes, run in zip(panels, runs, strict=True):
        _panel(axes, run)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=150)
    files.write_atomically(path, picture.getvalue(), "--plot")


def _panel(axes: "Axes", run: Run) -> None:
    whole = [one for one in run.figures if one.bits < 9 and one.kld_mean > 0]
    families = dict.fromkeys(one.family for one in whole)
    for marker, family in zip(MARKERS, families, strict=False):
        of_family = [one for one in whole if one.family == family]
        bits, klds, errors = zip(
            *((one.bits, one.kld_mean, one.kld_stderr) for one in of_family), strict=True
        )
        axes.errorbar(bits, klds, errors, fmt=marker, markersize=4, label=family)
    for one in _frontier(whole):
        at = (one.bits, one.kld_mean)
        axes.annotate(one.candidate, at, xytext=(4, -8), textcoords="offset points", fontsize=6)
    axes.set_yscale("log")
    axes.set_xlabel(f"bits a value at {run.ctx} tokens, everything counted")
    axes.set_ylabel("mean KL divergence, nats")
    axes.set_title(f"{run.model} on {run.text}", fontsize=9, parse_math=False)
    axes.grid(alpha=0.3)


def _frontier(figures: Sequence[Figures]) -> list[Figures]:
    """Those that no other beats with as few bits, and the rivals."""
    best = lambda one: all(o.bits > one.bits or o.kld_mean >= one.kld_mean for o in figures)
    return [one for one in figures if one.family == "rivals" or best(one)]
