"""Rules: which intervals hold against which claims, and what becomes of several."""

import dataclasses
import math

import pytest

from deltakv_jax.evaluation.claims import verdicts
from deltakv_jax.evaluation.claims.record import Statement
from deltakv_jax.evaluation.claims.verdicts import (
    FAILS,
    HOLDS,
    NOT_MEASURED,
    RULES,
    UNDECIDED,
    case,
    conclude,
    decide,
    judge,
)

STATEMENT = Statement(
    key="key",
    title="A claim",
    published="It was said.",
    experiment="It was tried.",
    commands=("run it",),
    number="loss",
    form="{:+.1f} %",
)


@pytest.mark.parametrize(
    ("low", "high", "claimed", "verdict"),
    [
        (0.1, 0.4, (None, 0.5), HOLDS),
        (-9.0, 0.5, (None, 0.5), HOLDS),
        (0.4, 0.6, (None, 0.5), UNDECIDED),
        (0.6, 0.7, (None, 0.5), FAILS),
        (9.0, 10.0, (10.0, None), UNDECIDED),
        (10.0, 99.0, (10.0, None), HOLDS),
        (1.0, 9.0, (10.0, None), FAILS),
        (5.0, 5.0, (4.5, 4.5), FAILS),
        (4.5, 4.5, (4.5, 4.5), HOLDS),
        (0.0, 0.0, (0.0, 0.0), HOLDS),
        (1e-9, 1e-9, (0.0, 0.0), FAILS),
        (1.0, 4.0, (2.0, 3.0), UNDECIDED),
        (None, None, (None, 0.5), UNDECIDED),
    ],
)
def test_a_bound_holds_for_the_whole_interval(low, high, claimed, verdict):
    assert judge(low, high, claimed, "bound") == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (5.0, 5.7, HOLDS),
        (5.7, 5.8, HOLDS),
        (5.9, 7.0, HOLDS),
        (6.1, 7.0, FAILS),
        (0.5, 1.9, FAILS),
        (-0.5, 1.9, FAILS),
        (-0.5, 7.0, UNDECIDED),
        (None, None, UNDECIDED),
    ],
)
def test_a_value_holds_where_the_interval_reaches_it_and_not_nothing(low, high, verdict):
    assert judge(low, high, (5.6, 6.0), "value") == verdict


def cases(*verdicts_wanted: str, conditional: bool = False):
    """Cases named a, b, … with these verdicts."""
    intervals = {HOLDS: (0.0, 0.1), FAILS: (2.0, 3.0), UNDECIDED: (0.5, 2.0)}
    return [
        case(name, 0.5, intervals[verdict], claimed=(None, 1.0), conditional=conditional)
        for name, verdict in zip("abcd", verdicts_wanted, strict=False)
    ]


@pytest.mark.parametrize(
    ("of_cases", "verdict"),
    [
        ((), NOT_MEASURED),
        ((HOLDS, HOLDS), HOLDS),
        ((FAILS, FAILS), FAILS),
        ((UNDECIDED,), UNDECIDED),
        ((HOLDS, FAILS), "holds on a; does not hold on b"),
        ((UNDECIDED, FAILS, FAILS), "undecided on a; does not hold on b and c"),
        ((HOLDS, HOLDS, HOLDS, FAILS), "holds on a, b and c; does not hold on d"),
    ],
)
def test_a_claim_has_the_verdict_of_its_numbers(of_cases, verdict):
    assert conclude(cases(*of_cases), None) == verdict


@pytest.mark.parametrize(
    ("given", "others", "verdict"),
    [
        ((HOLDS, HOLDS), (HOLDS,), HOLDS),
        ((HOLDS, HOLDS), (), HOLDS),
        ((HOLDS,), (FAILS,), "holds only when it rains"),
        ((HOLDS,), (HOLDS, FAILS), "holds only when it rains"),
        ((HOLDS,), (FAILS, UNDECIDED), "holds only when it rains"),
        ((HOLDS,), (UNDECIDED,), UNDECIDED),
        ((HOLDS, FAILS), (FAILS,), FAILS),
        ((UNDECIDED,), (FAILS,), UNDECIDED),
        ((), (FAILS,), NOT_MEASURED),
    ],
)
def test_a_conditional_claim_holds_only_under_its_condition(given, others, verdict):
    both = [*cases(*given, conditional=True), *cases(*others)]
    assert conclude(both, "it rains") == verdict


def test_a_decided_claim_tells_rule_verdict_and_reason():
    found = decide(STATEMENT, cases(HOLDS, FAILS), remark="So there.")
    assert found.verdict == "holds on a; does not hold on b"
    assert found.rule.startswith(RULES["bound"].capitalize())
    assert found.why == (
        "As claimed (at most +1.0 %): +0.5 % [+0.0 %, +0.1 %] (a). "
        "Not as claimed (at most +1.0 %): +0.5 % [+2.0 %, +3.0 %] (b). So there."
    )
    assert dataclasses.asdict(STATEMENT).items() <= dataclasses.asdict(found).items()


def test_without_numbers_the_remark_is_the_reason():
    found = decide(STATEMENT, [], remark="Nobody was there.")
    assert (found.verdict, found.why) == (NOT_MEASURED, "Nobody was there.")


def test_an_unknown_interval_is_shown_as_none():
    unknown = case("a", 1.0, (None, None), claimed=(None, 0.5))
    assert verdicts.measured(unknown, "{:g}") == "1"
    assert unknown.verdict == UNDECIDED


def test_every_part_of_a_range_is_shown():
    shown = lambda *claimed: verdicts.claimed(case("a", 0.0, claimed=claimed), "{:g}")
    assert shown(1.0, 2.0) == "1 to 2"
    assert shown(None, 2.0) == "at most 2"
    assert shown(1.0, None) == "at least 1"
    assert shown(1.0, 1.0) == "1"
    assert shown(None, None) == "anything"


def test_no_bound_is_no_bound():
    assert judge(-1e300, 1e300, (None, None), "bound") == HOLDS
    assert judge(-math.inf, 0.0, (None, 0.0), "bound") == HOLDS
