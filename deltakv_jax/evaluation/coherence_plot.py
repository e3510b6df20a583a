"""A picture of a `Coherence`: each figure against the layer."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from deltakv_jax.evaluation.coherence import Coherence, Row
from deltakv_jax.evaluation.coherence_report import NAMES
from deltakv_jax.evaluation.plots import COLORS, LARGE, LINES, MARKERS, NORMAL, PANEL, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3


class _Panel(NamedTuple):
    """One figure, and a value of it that decides something, with what it means."""

    label: str
    figure_of: Callable[[Row], float | None]
    mark: float | None = None
    meaning: str = ""


_PANELS = (
    _Panel(
        "RMS of difference / RMS of value",
        lambda row: row.relative_delta,
        math.sqrt(2),
        "thin line: neighbours have nothing in common",
    ),
    _Panel(
        "correlation of neighbours about the mean",
        lambda row: row.correlation,
        0.5,
        "above the thin line: differences beat the mean",
    ),
    _Panel("channel mean's share of the energy", lambda row: row.mean_energy),
    _Panel(
        "range of difference / range of value",
        lambda row: row.range_ratio,
        1,
        "below the thin line: differences have the finer scale",
    ),
    _Panel(
        "squared error, delta / q4_0",
        lambda row: row.delta_by_q4_0,
        1,
        "below the thin line: differences gain",
    ),
    _Panel(
        "squared error, centred q4_0 / q4_0",
        lambda row: row.centred_by_q4_0,
        1,
        "below the thin line: the mean gains",
    ),
)


def figure(found: Coherence) -> "Figure":
    """A panel for each figure that the run has, a line for each of K before and after RoPE and V.

    All axes but the layer are ratios, without unit.
    """
    from matplotlib.figure import Figure  # only now: it takes a second

    rows = [row for row in found.rows if row.layer is not None]
    panels = [one for one in _PANELS if any(one.figure_of(row) is not None for row in rows)]
    height = math.ceil(len(panels) / _COLUMNS)
    size = (_COLUMNS * PANEL[0], height * PANEL[1] + 0.9)
    made = Figure(figsize=size, layout="constrained")
    for axes, panel in zip(made.subplots(height, _COLUMNS).flat, panels, strict=True):
        _draw(axes, panel, rows)
    handles, names = made.axes[0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=3, fontsize=NORMAL, frameon=False)
    made.suptitle(
        f"{found.model} on {found.text}, {found.chunks} chunks of {found.ctx} tokens, "
        f"keyframe every {found.interval}",
        fontsize=LARGE,
    )
    return made


def _draw(axes: "Axes", panel: _Panel, rows: Sequence[Row]) -> None:
    if panel.mark is not None:
        axes.axhline(panel.mark, color="0.6", linewidth=0.8, zorder=0)
    for (array, name), *look in zip(NAMES.items(), COLORS, MARKERS, LINES, strict=False):
        values = [panel.figure_of(row) for row in rows if row.array == array]
        drawn = [math.nan if value is None else value for value in values]
        style = dict(zip(("color", "marker", "linestyle"), look, strict=True))
        axes.plot(range(len(drawn)), drawn, label=name, markersize=5, linewidth=1.3, **style)
    _name(axes, panel)


def _name(axes: "Axes", panel: _Panel) -> None:
    axes.set_title(panel.meaning, fontsize=SMALL)
    axes.set_xlabel("layer", fontsize=NORMAL)
    axes.set_ylabel(panel.label, fontsize=NORMAL)
    axes.tick_params(labelsize=SMALL)
    axes.locator_params(axis="x", integer=True)
    axes.spines[["top", "right"]].set_visible(False)
