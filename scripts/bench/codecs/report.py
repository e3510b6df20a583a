"""Figures for the reader: a table for people, JSON for programs, a rate-distortion plot."""

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from deltakv_jax.evaluation import files
from deltakv_jax.evaluation.report import nats, plain_table
from deltakv_jax.evaluation.statistics import Estimate, percent
from scripts.bench.codecs.measuring import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

COLUMNS = ("candidate", "bits", "KLD", "±", "99.9 %", "top %", "ppl %", "±", "95 % interval")
NAMED = ("formats", "rivals")
"""Families whose points have a name in the plot."""

MOST_BITS = 7
"""Of the points of a plot."""

STYLES = (
    {"fmt": "o", "markersize": 5},
    {"fmt": "s", "markersize": 4},
    {"fmt": ".", "markersize": 4, "color": "0.75", "zorder": 0},
)

PLACES = [
    (across, up, side)
    for up in (0, 9, -9, 18, -18, 27, -27, 36, -36, 45, -45)
    for across, side in ((6, "left"), (-6, "right"))
]
"""Where a name may stand, in points from its own, and on which of its sides."""


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
    weights: int
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

    figure = Figure(figsize=(6.2 * len(runs), 6.4), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for axes, run in zip(panels, runs, strict=True):
        _draw(axes, run)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.draw_without_rendering()  # points have their places only then
    figure.set_layout_engine("none")
    for axes, run in zip(panels, runs, strict=True):
        _name_points(axes, [one for one in _shown(run) if one.family in NAMED])
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], dpi=100)
    files.write_atomically(path, picture.getvalue(), "--plot")


def _shown(run: Run) -> list[Figures]:
    return [one for one in run.figures if one.bits < MOST_BITS and one.kld_mean > 0]


def _draw(axes: "Axes", run: Run) -> None:
    shown = _shown(run)
    parts = {name: [one for one in shown if one.family == name] for name in NAMED}
    parts["others"] = [one for one in shown if one.family not in NAMED]
    for (name, members), style in zip(parts.items(), STYLES, strict=True):
        if not members:
            continue
        bits, klds = [one.bits for one in members], [one.kld_mean for one in members]
        errors = [one.kld_stderr for one in members]
        axes.errorbar(bits, klds, errors, label=name, elinewidth=0.8, **style)
    axes.set_yscale("log")
    axes.set_xlabel(f"bits a value at {run.ctx} tokens, everything counted")
    axes.set_ylabel("mean KL divergence, nats")
    axes.set_title(f"{run.model} on {run.text}", fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.margins(x=0.12, y=0.06)


def _name_points(axes: "Axes", named: Sequence[Figures]) -> None:
    """A name beside each point, where there is room for it."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    points = [axes.transData.transform((one.bits, one.kld_mean)) for one in named]
    taken = [Bbox.from_bounds(x - 3, y - 3, 6, 6) for x, y in points]
    for one in named:
        made = [_name(axes, one, *place) for place in PLACES]
        for text in made:
            text.get_window_extent()  # puts it in its place; its line is within what this gives
        boxes = [Text.get_window_extent(text) for text in made]
        hits = [sum(box.overlaps(other) for other in taken) for box in boxes]
        outside = [not np.array_equal(Bbox.union([axes.bbox, box]), axes.bbox) for box in boxes]
        best = min(range(len(made)), key=lambda i: (outside[i], hits[i], i))
        taken.append(boxes[best])
        for text in (*made[:best], *made[best + 1 :]):
            text.remove()


def _name(axes: "Axes", one: Figures, across: float, up: float, side: str) -> "Annotation":
    return axes.annotate(
        one.candidate,
        (one.bits, one.kld_mean),
        xytext=(across, up),
        textcoords="offset points",
        fontsize=6.5,
        ha=side,
        va="center",
        parse_math=False,
        arrowprops={"arrowstyle": "-", "lw": 0.3, "color": "0.5"} if abs(up) > 9 else None,
    )
