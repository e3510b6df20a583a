"""Pictures of runs: what a format costs against what it saves, where it errs, and long contexts.

A format has the same marker, kind of line and colour in all panels of a figure, so that it can be
told from the others in grey too. matplotlib is imported where it is used: it takes a second.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import files, labels, sweep
from deltakv_jax.evaluation.profiles import Profile
from deltakv_jax.evaluation.results import LayerErrors, Row, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".pdf", ".svg")
PANEL = (4.4, 3.4)  # inches
SMALL, NORMAL, LARGE = 8, 9, 11  # points
NORMAL_95 = 1.96  # standard errors to either side that hold 95 % of a normal distribution
BIT_TICKS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
MARKS = 16  # markers along a line at most

COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^DvPX*"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1)))

Styles = dict[str, dict[str, Any]]
"""How each format is drawn, as arguments of `plot`."""


class Interval(NamedTuple):
    """A figure and the 95 % interval around it."""

    value: float
    low: float
    high: float

    @property
    def bars(self) -> tuple[list[float], list[float]]:
        """What the error bar adds below and above, as `errorbar` takes them."""
        return [max(0.0, self.value - self.low)], [max(0.0, self.high - self.value)]


def change_percent(row: Row) -> Interval:
    """The change of perplexity in percent; without an interval over chunks, from its error."""
    value, spread = row.change.value, NORMAL_95 * row.change.stderr
    return Interval(value, *(row.change_interval or (value - spread, value + spread)))


def formats_figure(run: Run) -> "Figure":
    """What each format costs against its bits, and its divergence along a context and a group.

    A second row of panels has the errors of each layer, where the run has them.
    """
    styles = _styles([run])
    layered = run.rows[0].by_layer is not None
    figure = _figure(3, 2 if layered else 1)
    grid = figure.add_gridspec(2 if layered else 1, 6)
    panels = [_trade, _along_context, *([_along_group] if run.rows[0].by_group_position else [])]
    width = 6 // len(panels)
    for i, panel in enumerate(panels):
        panel(figure.add_subplot(grid[0, i * width : (i + 1) * width]), run, styles)
    if layered:
        _layers([figure.add_subplot(grid[1, i : i + 2]) for i in (0, 2, 4)], run, styles)
    _head(figure, run)
    _legend(figure, styles)
    _label_points(figure.axes[0], run)  # last: where there is room depends on all the rest
    return figure


def sweep_figure(runs: Sequence[Run]) -> "Figure":
    """Change of perplexity against the context, a panel for each text."""
    texts = sweep.by_text(runs)
    styles = _styles(runs)
    figure = _figure(max(1.5, len(texts)), 1)
    panels = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
    for axes, of_text in zip(panels, texts, strict=True):
        _against_context(axes, of_text, styles)
        title = f"{of_text[0].model} on {of_text[0].text}"
        axes.set_title(title, fontsize=NORMAL, parse_math=False)  # a $ in a file's name is a $
        axes.set_xscale("log", base=2)
        axes.set_xlim(_around(run.ctx for run in runs))
        _plain_ticks(axes, sorted({run.ctx for run in runs}))
    figure.suptitle(
        f"Perplexity under KV cache formats{_qualities(runs[0])}; bars are 95 % intervals",
        fontsize=LARGE,
    )
    _legend(figure, styles)
    return figure


def check_plot_target(path: Path) -> None:
    """Raises UserError where no picture can be made at `path`; better now than after the run."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--plot {path}: a picture's name ends with {', '.join(SUFFIXES)}")
    files.check_writable(path, "--plot")


def save(figure: "Figure", path: Path) -> None:
    """Writes the picture as what the suffix says, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:].lower(), dpi=150)
    files.write_atomically(path, picture.getvalue(), "--plot")


def _figure(columns: float, rows: int) -> "Figure":
    """Without pyplot, which would keep every figure alive and ask for a display."""
    from matplotlib.figure import Figure

    width, height = PANEL
    return Figure(figsize=(columns * width, rows * height + 0.9), layout="constrained")


def _styles(runs: Sequence[Run]) -> Styles:
    """In order of appearance; after 56 formats the combinations begin anew."""
    names = dict.fromkeys(row.kv for run in runs for row in run.rows)
    looks = zip(*(itertools.cycle(looks) for looks in (COLORS, MARKERS, LINES)), strict=True)
    keys = ("color", "marker", "linestyle")
    return {
        kv: dict(zip(keys, look, strict=True)) | {"markersize": 5, "linewidth": 1.3}
        for kv, look in zip(names, looks, strict=False)
    }


def _trade(axes: "Axes", run: Run, styles: Styles) -> None:
    """Perplexity against size: the base is the line at 0."""
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    for row, bits in zip(run.rows, _side_by_side(run), strict=True):
        change = change_percent(row)
        style = {**styles[row.kv], "linestyle": "none"}
        axes.errorbar(bits, change.value, change.bars, capsize=3, **style)
    axes.set_xscale("log", base=2)
    axes.set_xlim(_around(row.bits_per_value for row in run.rows))
    _plain_ticks(axes, BIT_TICKS)
    axes.margins(y=0.15)
    change_axis = f"change of perplexity from {run.rows[0].kv} (%)"
    _name(axes, "Cost against size", "bits per stored value", change_axis)


def _label_points(axes: "Axes", run: Run) -> None:
    at = zip(run.rows, _side_by_side(run), strict=True)
    points = [labels.Point(row.kv, bits, *change_percent(row)) for row, bits in at]
    labels.place(axes, points, SMALL)


def _side_by_side(run: Run) -> list[float]:
    """The bits of each format, moved by a few percent where several have the same."""
    all_bits = [row.bits_per_value for row in run.rows]
    return [
        bits * _aside(all_bits[:i].count(bits), all_bits.count(bits))
        for i, bits in enumerate(all_bits)
    ]


def _aside(i: int, count: int) -> float:
    """The factor that moves the i-th of `count` points that would stand one upon another."""
    return 2 ** (0.04 * (i - (count - 1) / 2))


def _around(values: Iterable[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis with room beside the outermost values."""
    values = list(values)
    return min(values) / 1.35, max(values) * 1.35


def _along_context(axes: "Axes", run: Run, styles: Styles) -> None:
    _divergence(axes, run, styles, lambda row: row.by_position)
    kld = f"KL divergence from {run.rows[0].kv} (nats)"
    _name(axes, "Along the context", "position in the context (tokens)", kld)


def _along_group(axes: "Axes", run: Run, styles: Styles) -> None:
    _divergence(axes, run, styles, lambda row: row.by_group_position)
    kld = f"KL divergence from {run.rows[0].kv} (nats)"
    _name(axes, "Along a group", "position in the group (tokens)", kld)


def _divergence(
    axes: "Axes", run: Run, styles: Styles, profile_of: Callable[[Row], Profile | None]
) -> None:
    """Of every format that diverges at all: the base does not."""
    for row in run.rows:
        profile = profile_of(row)
        if profile is not None and any(profile.kld):
            bars = [NORMAL_95 * stderr for stderr in profile.kld_stderr]
            _line(axes, profile.at, profile.kld, styles[row.kv], bars)
    _logarithmic(axes)


def _layers(panels: "Sequence[Axes]", run: Run, styles: Styles) -> None:
    """Errors of K, V and the output of attention, on one scale."""
    from matplotlib.ticker import MaxNLocator

    kinds: dict[str, Callable[[LayerErrors], tuple[float, ...]]] = {
        "K": lambda errors: errors.k,
        "V": lambda errors: errors.v,
        "attention output": lambda errors: errors.output,
    }
    for axes, (title, of) in zip(panels, kinds.items(), strict=True):
        for row in run.rows:
            if row.by_layer is not None and any(of(row.by_layer)):
                _line(axes, range(len(of(row.by_layer))), of(row.by_layer), styles[row.kv])
        axes.sharey(panels[0])
        _logarithmic(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _name(axes, f"Error of {title} by layer", "layer", "relative error")


def _line(
    axes: "Axes",
    x: Sequence[float],
    y: Sequence[float],
    style: dict[str, Any],
    bars: Sequence[float] | None = None,
) -> None:
    every = math.ceil(len(x) / MARKS)
    axes.errorbar(x, y, bars, elinewidth=0.6, markevery=every, errorevery=every, **style)


def _against_context(axes: "Axes", runs: Sequence[Run], styles: Styles) -> None:
    """The formats of one text, side by side at each context so that their bars can be seen."""
    for i, (kv, style) in enumerate(styles.items()):
        found = [(run.ctx, row) for run in runs for row in run.rows if row.kv == kv]
        changes = [change_percent(row) for _, row in found]
        bars = [[bar for (bar,) in side] for side in zip(*(c.bars for c in changes), strict=True)]
        at = [ctx * _aside(i, len(styles)) for ctx, _ in found]
        axes.errorbar(at, [c.value for c in changes], bars or None, capsize=2, **style)
    base = runs[0].rows[0].kv
    _name(axes, "", "context (tokens)", f"change of perplexity from {base} (%)")


def _logarithmic(axes: "Axes") -> None:
    """A logarithmic axis where there is something to draw on it."""
    if axes.has_data():
        axes.set_yscale("log", nonpositive="clip")
    else:
        axes.text(0.5, 0.5, "0 everywhere", transform=axes.transAxes, ha="center", fontsize=NORMAL)


def _plain_ticks(axes: "Axes", at: Sequence[float]) -> None:
    """Ticks at these numbers, written out, and none between them."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = axes.get_xlim()
    within = [tick for tick in at if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(within))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}")


def _name(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=NORMAL)
    axes.set_xlabel(x, fontsize=NORMAL)
    axes.set_ylabel(y, fontsize=NORMAL)
    axes.tick_params(which="both", labelsize=SMALL)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _head(figure: "Figure", run: Run) -> None:
    figure.suptitle(
        f"{run.model} on {run.text}, context {run.ctx}{_qualities(run)}\n"
        f"{run.chunks} chunks, {run.tokens_scored} predictions; bars are 95 % intervals",
        fontsize=LARGE,
        parse_math=False,
    )


def _qualities(run: Run) -> str:
    """What else a reader must know of a run before comparing it."""
    fed = ", one token at a time" if run.sequential else ""
    raw = ", raw reads: not cache-true" if run.reads == "raw" else ""
    return f", protocol {run.protocol}{fed}{raw}"


def _legend(figure: "Figure", styles: Styles) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], label=kv, **style) for kv, style in styles.items()]
    inches = sum(0.85 + 0.075 * len(kv) for kv in styles)
    rows = math.ceil(inches / figure.get_figwidth())
    figure.legend(
        handles=lines,
        loc="outside lower center",
        ncols=math.ceil(len(lines) / rows),
        fontsize=NORMAL,
        frameon=False,
        handlelength=3.5,
    )
