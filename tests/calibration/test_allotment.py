"""Bits under a budget: never more than it, and more of them where an error costs more."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltakv_jax.cache import bits_per_value, make_cache
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation.allotment import Choice, allot, choices, greedily, packed_bits

HEAD_DIM = 32
LAYERED = parse_spec("layered:window=0:sinks=0")
COSTS = st.lists(st.floats(0, 1e3), min_size=4, max_size=4).map(np.array)


def bits(specs) -> list[float]:
    """Of all sides, K of every layer and then V."""
    return [
        packed_bits(side, HEAD_DIM) for name in "kv" for side in (getattr(s, name) for s in specs)
    ]


@settings(deadline=None)
@given(COSTS, st.floats(2.25, 5))
def test_the_budget_is_kept_and_used(costs, average):
    specs = allot(LAYERED, costs[:2], costs[2:], average=average, head_dim=HEAD_DIM)
    taken = bits(specs)
    assert np.mean(taken) <= average + 1e-6
    assert np.mean(taken) > average - 1 / len(taken) or min(taken) == 4.25
    for (one, cost), (other, less) in itertools.permutations(zip(taken, costs, strict=True), 2):
        if cost > less * 1.001:
            assert one >= other


@settings(deadline=None)
@given(COSTS, st.integers(0, 8))
def test_nothing_else_that_takes_as_many_bits_costs_less(costs, more):
    of_side = choices(LAYERED.k, HEAD_DIM)
    taken = greedily([of_side] * 4, costs, sum([of_side[0].bits] * 4) + more)
    cost = lambda way: sum(c * of_side[at].error for c, at in zip(costs, way, strict=True))
    every = (way for way in itertools.product(range(3), repeat=4) if sum(way) <= more)
    assert cost(taken) <= min(map(cost, every)) * (1 + 1e-9)


def test_bits_are_those_of_the_leaves():
    for name in ("layered:bits=2", "layered:bits=3:block=32", "q4_0", "delta:interval=16"):
        spec = parse_spec(f"{name}:window=0:sinks=0" if "layered" in name else name)
        cache = make_cache(spec, layers=1, kv_heads=2, head_dim=64, capacity=64)
        assert packed_bits(spec.k, 64) == bits_per_value(cache)


def test_errors_fall_by_less_with_every_bit():
    errors = [way.error for way in choices(LAYERED.k, HEAD_DIM)]
    assert errors == pytest.approx([10**-0.94, 10**-1.51, 10**-2.12], rel=0.2)


def test_the_template_says_the_rest():
    template = parse_spec("layered:block=32:window=8:sinks=2:centre/f16")
    specs = allot(template, np.ones(2), np.ones(2), average=9.2, head_dim=HEAD_DIM)
    assert [str(spec) for spec in specs] == [
        "layered:bits=2:block=32:window=8:sinks=2:centre/f16"
    ] * 2


def test_what_cannot_be_allotted_is_one_line():
    even = np.ones(2)
    with pytest.raises(UserError, match=r"--bits 2 is less than the 2\.25 of the least codes"):
        allot(LAYERED, even, even, average=2.0, head_dim=HEAD_DIM)
    with pytest.raises(UserError, match="--kv q4_0: no side of it has codes of several widths"):
        allot(parse_spec("q4_0"), even, even, average=4.0, head_dim=HEAD_DIM)


def test_a_side_without_a_choice_is_left_as_it_is():
    way = Choice(LAYERED.k, 4.0, 0.1)
    assert greedily([[way], [way, way._replace(bits=5.0, error=0.01)]], np.ones(2), 9.0) == [0, 1]
