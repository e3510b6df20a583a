"""What was claimed of neighbouring tokens, on the K and V of a model.

The number is that of all layers together, and its interval is from layer to layer.
"""

from collections.abc import Callable

from deltakv_jax.evaluation.capture import ARRAYS
from deltakv_jax.evaluation.claims.commands import Asked, coherence_commands, extent
from deltakv_jax.evaluation.claims.experiments import Evidence
from deltakv_jax.evaluation.claims.general import GAIN, WALKS, near
from deltakv_jax.evaluation.claims.record import Case, Claim, Interval, Statement, Table
from deltakv_jax.evaluation.claims.verdicts import case, decide
from deltakv_jax.evaluation.coherence import Coherence, Row

_K_BEFORE, _K, _V = ARRAYS
_STORED = {_K: "K", _V: "V"}


def one_percent(evidence: Evidence, asked: Asked) -> Claim:
    """How much consecutive tokens differ."""
    statement = Statement(
        key="one-percent",
        title="Consecutive tokens differ by about 1 %",
        published="K and V of consecutive tokens differ by about 1 %.",
        experiment=(
            "RMS of x_t - x_(t-1) by RMS of x_t, of V and of K as it is stored, after RoPE; "
            f"{_extent(evidence)}. About 1 % is taken to mean at most 2 %; tokens that have "
            "nothing in common differ by 141 %."
        ),
        commands=coherence_commands(evidence.coherence, asked),
        number="RMS of the difference by RMS of the value",
        form="{:.3g} %",
    )
    percent = lambda row: None if row.relative_delta is None else 100 * row.relative_delta
    tables = [_layers(found) for found in evidence.coherence]
    return decide(statement, _cases(evidence, percent, claimed=(None, 2.0)), tables=tables)


def value_by_difference(evidence: Evidence, asked: Asked) -> Claim:
    """The worked value, on what it stands for."""
    statement = Statement(
        key="worked-value-on-kv",
        title="166 times less error, on K and V of the model",
        published="A delta is so much smaller than its value that its error is 166 times less.",
        experiment=(
            "The error of q4_0 goes with the range that it codes, so what a delta can gain is RMS "
            f"of x_t by RMS of x_t - x_(t-1); {_extent(evidence)}."
        ),
        commands=coherence_commands(evidence.coherence, asked),
        number="RMS of the value by RMS of the difference",
        form="{:.2f}",
    )
    times = lambda row: 1 / row.relative_delta if row.relative_delta else None
    return decide(statement, _cases(evidence, times, claimed=(near(GAIN)[0], None)))


def gain(evidence: Evidence, asked: Asked) -> Claim:
    """The ratio of the synthetic table, on what it stands for."""
    statement = Statement(
        key="random-walk-on-kv",
        title="495 times less mean squared error, on K and V of the model",
        published="Deltas have 10,778 to 495 times less mean squared error than Q4_0.",
        experiment=(
            "The ratio of the synthetic table, mean squared error of q4_0 by that of delta, of V "
            f"and of K after RoPE; {_extent(evidence)}. Below 1 delta is the worse of the two."
        ),
        commands=coherence_commands(evidence.coherence, asked),
        number="mean squared error of q4_0 by that of delta",
        form="{:.2f}",
    )
    least = near(min(WALKS.values()))[0]
    cases = _cases(evidence, _gain, claimed=(least, None))
    return decide(statement, cases, remark="" if cases else evidence.missing.get("short", ""))


def _extent(evidence: Evidence) -> str:
    return f"all layers together, in brackets from layer to layer; {extent(evidence.coherence)}"


def _gain(row: Row) -> float | None:
    return row.q4_0_mse / row.delta_mse if row.q4_0_mse and row.delta_mse else None


def _cases(
    evidence: Evidence,
    figure: Callable[[Row], float | None],
    *,
    claimed: Interval,
) -> list[Case]:
    """K and V of each text, over all layers; the interval is from layer to layer."""
    cases = []
    for found in evidence.coherence:
        for array, name in _STORED.items():
            of_array = {row.layer: figure(row) for row in found.rows if row.array == array}
            whole, layers = of_array.pop(None), [x for x in of_array.values() if x is not None]
            if whole is not None:
                subject = f"{name}, {found.text}"
                cases.append(case(subject, whole, (min(layers), max(layers)), claimed=claimed))
    return cases


def _layers(found: Coherence) -> Table:
    """RMS ratio and gain, layer by layer."""
    by_layer: dict[int | None, dict[str, Row]] = {}
    for row in found.rows:
        by_layer.setdefault(row.layer, {})[row.array] = row
    rows = []
    for layer, arrays in by_layer.items():
        ratios = [_shown(arrays[name].relative_delta) for name in (_K_BEFORE, _K, _V)]
        gains = [_shown(_gain(arrays[name])) for name in (_K, _V)]
        rows.append(("all" if layer is None else str(layer), *ratios, *gains))
    columns = ("layer", "K before RoPE", "K", "V", "K: q4_0 / delta", "V: q4_0 / delta")
    caption = f"{found.text}: RMS of the difference by RMS of the value; mean squared errors"
    return Table(caption=caption, columns=columns, rows=tuple(rows))


def _shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.2f}"
