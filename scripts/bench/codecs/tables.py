"""Tables of Markdown documents, made of the JSON that scripts/bench/codec.py writes.

Every comparison is of means over the same chunks: the ratio of two mean divergences, with the
standard error that the chunks' own differences give it.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import markdown, reading
from deltakv_jax.evaluation.report import nats, span
from deltakv_jax.evaluation.statistics import Estimate, percent
from scripts.bench.codecs.bounds import BOUNDS, ROTATED, Bound
from scripts.bench.codecs.measuring import Figures
from scripts.bench.codecs.report import Run
from scripts.bench.codecs.tools import TOOLS, Tool

WHOLE = ("formats", "rivals")
WIDTH = 120  # columns of text
SURE = 2.0  # standard errors
CHOICES = (
    "0 or 1",
    "0, 1/2 or 1",
    "0, 1/2 or 1 by energy",
    "-1/2, 0 or 1/2",
    "0, 1/2 or 1, no mean",
)


def read(paths: Iterable[Path]) -> list[Run]:
    """The runs of some files."""
    return [run for path in paths for run in _runs({path: reading.read_object(path)})]


def prediction_text(runs: Sequence[Run]) -> str:
    """What predicting a token from the last one comes to, once the mean is off."""
    parts = []
    for side in "KV":
        within = lambda name, side=side: _range(runs, f"{side}: {name}", f"{side}: intra")
        predicted = f"{side}: 0, 1/2 or 1 by energy", f"{side}: intra"
        parts.append(
            f"{side}: against coding each token by itself, always taking off the last one "
            f"multiplies the mean divergence by {within('1')}. Where each block of 32 values takes "
            f"the best of 0, 1/2 and 1 of it, the factor is {within('0, 1/2 or 1')}; but with the "
            f"best of -1/2, 0 and 1/2 it is {within('-1/2, 0 or 1/2')}: most of the gain is a "
            "choice among three grids. Where a block takes what leaves the smallest "
            f"residual, so that prediction alone counts, it is {within('0, 1/2 or 1 by energy')}, "
            f"and at equal bits {_range(runs, *predicted, paid=True)}."
        )
    return textwrap.fill(" ".join(parts), WIDTH, break_on_hyphens=False) + "\n"


def _range(runs: Sequence[Run], name: str, against: str, *, paid: bool = False) -> str:
    """The least and the largest ratio; with what more bits are worth if `paid`."""
    tool = Tool("", name, against, "")
    values = sorted(_ratio(tool, run).value * (_worth(tool, run) if paid else 1) for run in runs)
    return f"{values[0]:.2f} to {values[-1]:.2f}"


def formats_table(runs: Sequence[Run]) -> str:
    """Bits and divergences of whole formats, fewest bits first."""
    first = runs[0]
    whole = sorted((one for one in first.figures if one.family in WHOLE), key=lambda one: one.bits)
    contexts = dict.fromkeys(run.ctx for run in runs)
    names = ["", *(f"bits at {ctx}" for ctx in contexts)]
    names += [f"KLD, {_place(run)}" for run in runs]
    names += [f"perplexity, {_place(run)}" for run in runs]
    of_ctx = {run.ctx: run for run in runs}
    lines = []
    for one in whole:
        each = [_find(run, one.candidate) for run in runs]
        bits = [f"{_find(of_ctx[ctx], one.candidate).bits:.3f}" for ctx in contexts]
        name = f"`{one.candidate}`" if one.family == "formats" else one.candidate
        lines.append([name, *bits, *map(_divergence, each), *map(_change, each)])
    return markdown.table(names, lines)


def tools_table(runs: Sequence[Run]) -> str:
    """One line for each tool alone: what it gave on each text, and what came of it."""
    names = ("tool", "more bits", *map(_place, runs), "verdict", "in `layered`")
    return markdown.table(names, [_tool_line(tool, runs) for tool in TOOLS])


def choices_table(runs: Sequence[Run]) -> str:
    """How often blocks take another coefficient than 0, layer by layer, in percent."""
    lines = [
        (f"{side}: {name}", *(_shares(run, side, name) for run in runs))
        for side in "KV"
        for name in CHOICES
    ]
    return markdown.table(("", *map(_place, runs)), lines)


def bounds_table(runs: Sequence[Run]) -> str:
    """What was asked of formats, and what they do."""
    names = ("asked", "on", "format", "bits", "mean KLD", "against", "ratio", "perplexity", "met")
    lines = [_bound_line(bound, run) for bound in BOUNDS for run in runs if run.ctx == bound.ctx]
    return markdown.table(names, lines)


Maker = Callable[[Sequence[Run]], str]

MAKERS: dict[str, Callable[[dict[Path, dict[str, Any]]], str]] = {
    f"codec-{name}": lambda documents, make=make: make(_runs(documents))
    for name, make in {
        "prediction": prediction_text,
        "formats": formats_table,
        "tools": tools_table,
        "choices": choices_table,
        "bounds": bounds_table,
    }.items()
}
"""By the word that a document asks for them with, as `markdown.filled` takes them."""


def _runs(documents: dict[Path, dict[str, Any]]) -> list[Run]:
    return [
        run for path, one in documents.items() for run in reading.records(Run, one, "runs", path)
    ]


def _find(run: Run, name: str) -> Figures:
    for one in run.figures:
        if one.candidate == name:
            return one
    raise UserError(f"{run.title}: {name!r} was not measured")


def _place(run: Run) -> str:
    return f"{run.model}, {run.text}"


def _divergence(one: Figures) -> str:
    return f"{nats(one.kld_mean)} ± {nats(one.kld_stderr)}"


def _change(one: Figures) -> str:
    """The change of perplexity with its interval."""
    value = percent(Estimate(one.delta_ln_ppl, 0.0)).value
    if (interval := _interval(one)) is None:
        return f"{value:+.2f} %"
    return f"{value:+.2f} ({span(interval)}) %"


def _interval(one: Figures) -> tuple[float, float] | None:
    if one.delta_ln_ppl_low is None or one.delta_ln_ppl_high is None:
        return None
    low, high = (100 * math.expm1(at) for at in (one.delta_ln_ppl_low, one.delta_ln_ppl_high))
    return low, high


def ratio(one: Figures, other: Figures) -> Estimate:
    """The mean divergence of one by that of another on the same chunks, to first order."""
    a, b = (np.array(figures.kld_of_chunks) for figures in (one, other))
    value = float(a.mean() / b.mean())
    left = a - value * b
    return Estimate(value, float(left.std(ddof=1) / math.sqrt(len(a)) / b.mean()))


def more_bits(tool: Tool, run: Run) -> float:
    """What the tool adds to the bits of a value that is packed: of both sides, or of its one."""
    added = _find(run, tool.candidate).bits - _find(run, tool.against).bits
    alone = all(name.startswith(("K: ", "V: ")) for name in (tool.candidate, tool.against))
    return 2 * added if alone else added


def _ratio(tool: Tool, run: Run) -> Estimate:
    return ratio(_find(run, tool.candidate), _find(run, tool.against))


def _worth(tool: Tool, run: Run) -> float:
    """What its bits would give as finer codes: a quarter of the divergence for each."""
    return 4 ** more_bits(tool, run)


def verdict(tool: Tool, runs: Sequence[Run]) -> str:
    """Whether it pays, that is gives more than its bits do as finer codes."""
    found = []
    for run in runs:
        at = _ratio(tool, run)
        low, high = ((at.value + side * SURE * at.stderr) * _worth(tool, run) for side in (-1, 1))
        found.append("pays" if high < 1 else "costs" if low > 1 else "even")
    kinds = dict.fromkeys(found)
    if len(kinds) == 1:
        return found[0]
    return "; ".join(found)


def _tool_line(tool: Tool, runs: Sequence[Run]) -> tuple[str, ...]:
    bits = dict.fromkeys(f"{more_bits(tool, run):+.2f}".replace("-0.00", "+0.00") for run in runs)
    ratios = (_ratio(tool, run) for run in runs)
    shown = (f"{at.value:.2f} ± {at.stderr:.{2 if at.stderr >= 0.01 else 3}f}" for at in ratios)
    added = " / ".join("0" if words == "+0.00" else words for words in bits)
    said = (verdict(tool, runs), tool.used) if tool.used else ("", "")
    return (tool.what, added, *shown, *said)


def _shares(run: Run, side: str, name: str) -> str:
    one = _find(run, f"{side}: {name}")
    choices = one.k_choices if side == "K" else one.v_choices
    at = 1 if name.startswith("-") else 0  # where 0 stands among the coefficients
    return ", ".join(f"{100 * (1 - layer[at]):.0f}" for layer in choices or ())


def _bound_line(bound: Bound, run: Run) -> tuple[str, ...]:
    one, other = _find(run, bound.candidate), _find(run, bound.against)
    at = ratio(one, other)
    against = f"`{bound.against}`" if bound.against == ROTATED else bound.against
    return (
        bound.asked,
        _place(run),
        f"`{bound.candidate}`",
        f"{one.bits:.3f}",
        _divergence(one),
        f"{against}, {other.bits:.3f} bits, {nats(other.kld_mean)}",
        f"{at.value:.3f} ± {at.stderr:.3f}",
        _change(one),
        "yes" if bound.met(one, other, _interval(one)) else "**no**",
    )
