"""What measured figures make of each claim about models."""

import dataclasses
import math

import pytest

from deltakv_jax.evaluation.claims import on_model, perplexities, verdicts
from deltakv_jax.evaluation.claims.experiments import DELTA
from deltakv_jax.evaluation.claims.verdicts import FAILS, HOLDS, NOT_MEASURED, UNDECIDED
from tests.evaluation.claims.samples import (
    ASKED,
    LOSS,
    NO_LOSS,
    NOTHING,
    evidence,
    make_coherence,
    make_run,
)


def by_key(found):
    return {claim.key: claim for claim in on_model.claims(found, ASKED)}


def test_each_claim_has_the_verdict_of_its_own_figure():
    claims = by_key(evidence())
    assert {key: claim.verdict for key, claim in claims.items()} == {
        "within-16": FAILS,
        "within-32": HOLDS,
        "within-64": UNDECIDED,
        "better-than-f16": FAILS,
        "q4_0-loss": FAILS,
        "loss-ratio": UNDECIDED,
        "q4_0-loss-2048": FAILS,
        "delta-loss-2048": FAILS,
        "same-storage": FAILS,
        "published-protocol": (
            "holds only when attention reads K and V that are not packed yet, which is not "
            "cache-true"
        ),
        "one-percent": FAILS,
        "worked-value-on-kv": FAILS,
        "random-walk-on-kv": FAILS,
    }


def test_figures_as_published_hold():
    """A model on which all of it is true, but for the storage."""
    log = lambda percent: math.log1p(percent / 100)
    in_ln = lambda value, low, high: (log(value), log(low), log(high))
    found = evidence(
        short=(
            in_ln(5.61, 5.0, 6.2),
            in_ln(-0.11, -0.2, -0.01),
            in_ln(0.01, 0.0, 0.02),
            in_ln(0.4, 0.3, 0.45),
        ),
        relative_delta=0.006,
    )
    long = make_run("long", "a.txt", in_ln(6.9, 6.0, 8.0), in_ln(0.3, 0.2, 0.39))
    coherence = (make_coherence("a.txt", 0.006, 600.0),)
    found = dataclasses.replace(found, runs={**found.runs, "long": (long,)}, coherence=coherence)
    claims = by_key(found)
    kept = {claims.pop("same-storage").verdict, claims.pop("published-protocol").verdict}
    assert HOLDS not in kept
    assert {claim.verdict for claim in claims.values()} == {HOLDS}


def test_every_verdict_follows_from_the_numbers_beside_it():
    for claim in on_model.claims(evidence(), ASKED):
        for case in claim.cases:
            claimed = case.claimed_low, case.claimed_high
            assert case.verdict == verdicts.judge(case.low, case.high, claimed, case.kind)
        assert claim.verdict == verdicts.conclude(claim.cases, claim.condition)


def test_a_change_is_in_percent_of_perplexity():
    (case,) = by_key(evidence())["q4_0-loss"].cases
    assert case.value == pytest.approx(100 * math.expm1(LOSS[0]))
    assert (case.low, case.high) == pytest.approx([100 * math.expm1(x) for x in LOSS[1:]])


def test_texts_are_judged_apart():
    found = evidence()
    other = make_run("short", "b.txt", LOSS, LOSS, LOSS, LOSS)
    found = dataclasses.replace(found, runs={**found.runs, "short": (*found.runs["short"], other)})
    claim = by_key(found)["within-32"]
    assert claim.verdict == "holds on a.txt; does not hold on b.txt"
    assert [command.split(" --text ")[1].split()[0] for command in claim.commands] == [
        "folder/a.txt",
        "b.txt",
    ]


def test_commands_are_those_of_the_runs():
    claims = by_key(evidence())
    assert claims["delta-loss-2048"].commands == (
        "python scripts/perplexity.py --model demo --text folder/a.txt --ctx 2048 --chunks 3 "
        "--kv f16 q4_0 delta",
    )
    raw, true = claims["published-protocol"].commands
    assert "--reads raw" in raw
    assert "--reads" not in true
    assert claims["one-percent"].commands == (
        "python scripts/coherence.py --model demo --text folder/a.txt --ctx 512 --chunks 2 "
        "--interval 32",
    )


def test_what_was_not_measured_says_why():
    claims = by_key(NOTHING)
    measured = {claims.pop(key).verdict for key in ("one-percent", "worked-value-on-kv")}
    assert measured == {FAILS}
    for claim in claims.values():
        assert (claim.verdict, claim.why) == (NOT_MEASURED, "Not with this model.")


def test_a_single_chunk_decides_nothing():
    found = evidence(short=tuple((x, None, None) for x in (0.06, 0.0, 0.0, 0.0)))
    claims = by_key(found)
    for key in ("within-32", "better-than-f16", "q4_0-loss", "loss-ratio"):
        assert claims[key].verdict == UNDECIDED


def test_neighbours_are_judged_over_layers_by_side():
    cases = by_key(evidence())["one-percent"].cases
    assert [case.subject for case in cases] == ["K, a.txt", "V, a.txt"]
    assert (cases[0].low, cases[0].value, cases[0].high) == pytest.approx((72, 80, 88))
    (k, v) = by_key(evidence())["worked-value-on-kv"].cases
    assert (k.low, k.value, k.high) == pytest.approx((1 / 0.88, 1.25, 1 / 0.72))
    assert v.verdict == FAILS


def test_the_interval_of_a_ratio_holds_all_ratios():
    assert perplexities.ratio_interval((1.0, 2.0), (4.0, 8.0)) == (0.125, 0.5)
    assert perplexities.ratio_interval((-1.0, 2.0), (4.0, 8.0)) == (-0.25, 0.5)
    assert perplexities.ratio_interval((-2.0, -1.0), (4.0, 8.0)) == (-0.5, -0.125)
    assert perplexities.ratio_interval((1.0, 2.0), (-0.1, 8.0)) == (None, None)
    assert perplexities.ratio_interval((None, None), (4.0, 8.0)) == (None, None)


def test_no_loss_at_all_divides_nothing():
    claims = by_key(evidence(short=((0.0, 0.0, 0.0), LOSS, NO_LOSS, LOSS)))
    assert claims["loss-ratio"].verdict == NOT_MEASURED


def test_storage_is_what_was_counted():
    cases = by_key(evidence())["same-storage"].cases
    assert [case.value for case in cases] == [5.5, 5.0, 4.75]
    assert {case.claimed_high for case in cases} == {4.5}
    assert len(cases) == len(DELTA)
