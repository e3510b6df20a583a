"""From numbers to verdicts: the rules, in words and as code.

A case is judged by its interval against the range that is claimed; a claim by all of its cases. No
other number, and no opinion, enters.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from deltakv_jax.evaluation.claims.record import Case, Claim, Interval, Statement, Table

HOLDS = "holds"
FAILS = "does not hold"
UNDECIDED = "undecided"
NOT_MEASURED = "not measured here"

RULES: dict[str, str] = {
    "bound": (
        "a number holds if its whole interval lies in the claimed range, does not hold if all of "
        "it lies outside, and is undecided between"
    ),
    "value": (
        "a number holds if its interval reaches into the claimed range and not as far as 0, is "
        "undecided if it reaches both, and does not hold otherwise"
    ),
}
_TOGETHER = "The claim has the verdict of its numbers, each with its subject where they differ."
_CONDITIONAL = (
    "The claim holds if all of its numbers do, and only under its condition if all made under it "
    "do and another does not; it does not hold if one made under its condition does not."
)


def case(
    subject: str,
    value: float,
    interval: Interval | None = None,
    *,
    claimed: Interval,
    kind: str = "bound",
    conditional: bool = False,
) -> Case:
    """A judged case.

    Args:
      subject: what the number was measured on.
      value: the number.
      interval: of the number; not given where it is exact.
      claimed: the range that is claimed.
      kind: how interval and range decide.
      conditional: whether it was made under the claim's condition.
    """
    low, high = (value, value) if interval is None else interval
    return Case(
        subject=subject,
        value=value,
        low=low,
        high=high,
        claimed_low=claimed[0],
        claimed_high=claimed[1],
        kind=kind,
        conditional=conditional,
        verdict=judge(low, high, claimed, kind),
    )


def judge(low: float | None, high: float | None, claimed: Interval, kind: str) -> str:
    """The verdict on an interval, by the rule `RULES[kind]`; undecided where it is unknown."""
    if low is None or high is None:
        return UNDECIDED
    least = -math.inf if claimed[0] is None else claimed[0]
    most = math.inf if claimed[1] is None else claimed[1]
    if high < least or low > most:
        return FAILS
    if kind == "value":
        return UNDECIDED if low <= 0 <= high else HOLDS
    return HOLDS if least <= low and high <= most else UNDECIDED


def conclude(cases: Sequence[Case], condition: str | None) -> str:
    """The verdict on a claim from those on its cases."""
    if condition is None:
        return _together(cases)
    given = {one.verdict for one in cases if one.conditional}
    others = {one.verdict for one in cases if not one.conditional}
    if not given:
        return NOT_MEASURED
    if FAILS in given:
        return FAILS
    if UNDECIDED in given or (FAILS not in others and UNDECIDED in others):
        return UNDECIDED
    return f"holds only when {condition}" if FAILS in others else HOLDS


def _together(cases: Sequence[Case]) -> str:
    subjects: dict[str, list[str]] = {}
    for one in cases:
        subjects.setdefault(one.verdict, []).append(one.subject)
    if len(subjects) < 2:
        return next(iter(subjects), NOT_MEASURED)
    return "; ".join(f"{verdict} on {_listed(names)}" for verdict, names in subjects.items())


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def decide(
    statement: Statement,
    cases: Sequence[Case],
    *,
    tables: Sequence[Table] = (),
    remark: str = "",
) -> Claim:
    """The claim with its verdict.

    Args:
      statement: what was claimed.
      cases: the numbers that decide.
      tables: the numbers around them.
      remark: goes behind the reason, or stands in its place where there are no cases.
    """
    reason = _reason(cases, statement.form)
    return Claim(
        **dataclasses.asdict(statement),
        cases=tuple(cases),
        tables=tuple(tables),
        rule=_rule(cases, statement.condition),
        verdict=conclude(cases, statement.condition),
        why=" ".join(filter(None, (reason, remark))),
    )


def _rule(cases: Sequence[Case], condition: str | None) -> str:
    if not cases:
        return "Without a number there is no verdict."
    kinds = dict.fromkeys(one.kind for one in cases)
    words = "; ".join(RULES[kind] for kind in kinds)
    return f"{words[0].upper()}{words[1:]}. {_TOGETHER if condition is None else _CONDITIONAL}"


def _reason(cases: Sequence[Case], form: str) -> str:
    groups: dict[str, list[Case]] = {}
    for one in cases:
        groups.setdefault(f"{_REASONS[one.verdict]} ({claimed(one, form)})", []).append(one)
    parts = [f"{reason}: {_numbers(group, form)}." for reason, group in groups.items()]
    return " ".join(parts)


_REASONS = {
    HOLDS: "As claimed",
    FAILS: "Not as claimed",
    UNDECIDED: "Too uncertain for what is claimed",
}


def _numbers(cases: Iterable[Case], form: str) -> str:
    return ", ".join(f"{measured(one, form)} ({one.subject})" for one in cases)


def measured(one: Case, form: str) -> str:
    """The number of a case with its interval."""
    value = form.format(one.value)
    if one.low is None or one.high is None or one.low == one.high:
        return value
    return f"{value} [{form.format(one.low)}, {form.format(one.high)}]"


def claimed(one: Case, form: str) -> str:
    """The range that is claimed of a case."""
    low, high = one.claimed_low, one.claimed_high
    if low is not None and high is not None:
        return form.format(low) if low == high else f"{form.format(low)} to {form.format(high)}"
    if high is not None:
        return f"at most {form.format(high)}"
    return "anything" if low is None else f"at least {form.format(low)}"
