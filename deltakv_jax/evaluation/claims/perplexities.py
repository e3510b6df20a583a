"""What was claimed of perplexity: what Delta-KV loses, what Q4_0 loses, and their ratio.

A text's verdict is by its own number, in percent of f16's perplexity, with the 95 % interval of
resampled chunks.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from deltakv_jax.evaluation.claims.commands import Asked, extent, perplexity_commands
from deltakv_jax.evaluation.claims.experiments import (
    BASE,
    DELTA,
    INTERVAL,
    PLAIN,
    Evidence,
    row_of,
)
from deltakv_jax.evaluation.claims.record import Case, Claim, Interval, Statement, Table
from deltakv_jax.evaluation.claims.verdicts import case, decide
from deltakv_jax.evaluation.results import Row, Run


class Published(NamedTuple):
    """What was published of one keyframe interval, at 512 tokens."""

    perplexity: float
    percent: float


F16_PERPLEXITY = 3.2840
Q4_0_PERCENT = 5.61
PUBLISHED = {
    16: Published(3.3002, 0.49),
    32: Published(3.2926, 0.26),
    64: Published(3.3027, 0.57),
}
LIMIT = 0.5  # percent: "within 0.5 % of F16"


def within_limit(evidence: Evidence, asked: Asked, interval: int) -> Claim:
    """Delta-KV within 0.5 % of F16."""
    perplexity, percent = PUBLISHED[interval]
    return _change(
        evidence,
        asked,
        _Change("short", DELTA[interval], (None, LIMIT)),
        key=f"within-{interval}",
        title=f"Within {LIMIT} % of F16, keyframe every {interval}",
        published=(
            f"Delta-KV with a keyframe every {interval} tokens: perplexity {perplexity:.4f}, F16 "
            f"{F16_PERPLEXITY:.4f}, {percent:+.2f} %; in all, within {LIMIT} % of F16."
        ),
    )


def announced(evidence: Evidence, asked: Asked) -> Claim:
    """Delta-KV better than F16."""
    return _change(
        evidence,
        asked,
        _Change("short", DELTA[16], (None, 0.0)),
        key="better-than-f16",
        title="Better than F16, keyframe every 16",
        published="As first announced: perplexity 3.3352, F16 3.3389, -0.11 %.",
    )


def plain_loss(evidence: Evidence, asked: Asked) -> Claim:
    """What Q4_0 loses."""
    return _change(
        evidence,
        asked,
        _Change("short", PLAIN, (Q4_0_PERCENT, 5.98), "value"),
        key="q4_0-loss",
        title="Q4_0 loses 5.6 to 6 %",
        published="Q4_0: 3.4683, F16 3.2840, +5.61 % (+5.98 % as first announced).",
    )


def plain_loss_long(evidence: Evidence, asked: Asked) -> Claim:
    """What Q4_0 loses at 2048 tokens."""
    return _change(
        evidence,
        asked,
        _Change("long", PLAIN, (6.9, 6.9), "value"),
        key="q4_0-loss-2048",
        title="Q4_0 loses 6.9 % at 2048 tokens",
        published="At 2048 tokens Q4_0 is at +6.9 % of F16.",
    )


def delta_loss_long(evidence: Evidence, asked: Asked) -> Claim:
    """What Delta-KV loses at 2048 tokens."""
    return _change(
        evidence,
        asked,
        _Change("long", DELTA[INTERVAL], (None, 0.4)),
        key="delta-loss-2048",
        title="Delta-KV loses 0.4 % at 2048 tokens",
        published="At 2048 tokens Delta-KV is at +0.4 % of F16.",
    )


class _Change(NamedTuple):
    """A change of perplexity: of which part, by which format, and what is claimed of it."""

    part: str
    kv: str
    claimed: Interval
    kind: str = "bound"


def _change(evidence: Evidence, asked: Asked, change: _Change, **words: str) -> Claim:
    runs = evidence.runs[change.part]
    statement = Statement(
        **words,
        experiment=f"Perplexity with `{change.kv}` and `{BASE}`, cache-true; {extent(runs)}.",
        commands=perplexity_commands(runs, asked),
        number="change of perplexity against f16",
        form="{:+.2f} %",
    )
    cases = [_change_case(run, change) for run in runs]
    return decide(statement, cases, remark=evidence.missing.get(change.part, ""))


def _change_case(run: Run, change: _Change) -> Case:
    row = row_of(run, change.kv)
    value, interval = _percent(row.delta_ln_ppl), _interval(row)
    return case(run.text, value, interval, claimed=change.claimed, kind=change.kind)


def loss_ratio(evidence: Evidence, asked: Asked) -> Claim:
    """Delta-KV's loss by that of Q4_0."""
    # a loss of exactly nothing divides nothing
    runs = [run for run in evidence.runs["short"] if row_of(run, PLAIN).delta_ln_ppl]
    most = round(PUBLISHED[INTERVAL].percent / Q4_0_PERCENT, 2)
    statement = Statement(
        key="loss-ratio",
        title="Delta-KV loses a twentieth of what Q4_0 loses",
        published="With a keyframe every 32 tokens +0.26 %, Q4_0 +5.61 %: a ratio of 0.05.",
        experiment=(
            "The ratio of the two changes of perplexity, its interval the widest that those of the "
            f"changes allow; {extent(runs)}."
        ),
        commands=perplexity_commands(runs, asked),
        number="loss of delta by loss of q4_0",
        form="{:.2f}",
    )
    cases = [case(run.text, *_ratio(run, DELTA[INTERVAL]), claimed=(None, most)) for run in runs]
    remark = evidence.missing.get("short", "")
    return decide(statement, cases, tables=_ratio_tables(runs), remark=remark)


def _ratio(run: Run, kv: str) -> tuple[float, Interval]:
    """With its interval, unknown where q4_0 may have lost nothing."""
    ours, plain = row_of(run, kv), row_of(run, PLAIN)
    ratio = _percent(ours.delta_ln_ppl) / _percent(plain.delta_ln_ppl)
    return ratio, ratio_interval(_interval(ours), _interval(plain))


def ratio_interval(part: Interval, whole: Interval) -> Interval:
    """All ratios of a number in the one interval by one in the other, if that is above 0."""
    (low, high), (least, most) = part, whole
    if low is None or high is None or least is None or most is None or least <= 0:
        return None, None
    return min(low / least, low / most), max(high / least, high / most)


def _ratio_tables(runs: Sequence[Run]) -> list[Table]:
    if not runs:
        return []
    rows = [(run.text, *(f"{_ratio(run, kv)[0]:.2f}" for kv in DELTA.values())) for run in runs]
    published = [f"{one.percent / Q4_0_PERCENT:.2f}" for one in PUBLISHED.values()]
    return [
        Table(
            caption="The ratio for each keyframe interval",
            columns=("text", *(f"N = {interval}" for interval in DELTA)),
            rows=(*rows, ("as published", *published)),
        )
    ]


def _percent(change: float) -> float:
    """A change of ln(perplexity) in percent of perplexity."""
    return 100 * math.expm1(change)


def _interval(row: Row) -> Interval:
    if row.delta_ln_ppl_low is None or row.delta_ln_ppl_high is None:
        return None, None
    return _percent(row.delta_ln_ppl_low), _percent(row.delta_ln_ppl_high)
