"""What a cache costs, where its layers lie, and rolling it back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltakv_jax.cache import (
    advance,
    bits_per_value,
    cache_bytes,
    make_cache,
    truncate,
)
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from tests.cache.material import (
    BATCH,
    CAPACITY,
    EXAMPLES,
    HEAD_DIM,
    KINDS,
    LAYERS,
    PIECE,
    SPECS,
    Tokens,
    assert_same_bits,
    at_once,
    drip,
    empty,
    fill,
)

TOKENS = Tokens.random(1)
LENGTHS = st.tuples(*[st.integers(0, CAPACITY)] * BATCH)
cut = jax.jit(truncate, donate_argnums=0)


@given(LENGTHS, LENGTHS, st.tuples(*[st.integers(0, PIECE)] * BATCH))
@EXAMPLES
def test_rolled_back_it_is_as_if_it_had_never_held_the_later_tokens(lengths, kept, more):
    """Bit for bit, and going on from there with other tokens as well."""
    kept = np.minimum(lengths, kept)
    cache = cut(at_once(TOKENS, lengths), jnp.array(kept))
    assert_same_bits(cache, at_once(TOKENS, kept))
    other = Tokens.random(2)
    more = np.minimum(more, CAPACITY - kept)
    gone_on = fill(cache, other, [more], starts=kept)
    assert_same_bits(gone_on, fill(at_once(TOKENS, kept), other, [more], starts=kept))
    rolled_again = cut(gone_on, jnp.array(kept))
    dripped = fill(rolled_again, other, [more], starts=kept, size=CAPACITY, step=drip)
    assert_same_bits(dripped, fill(at_once(TOKENS, kept), other, [more], starts=kept))


def test_truncating_to_more_than_is_held_changes_nothing():
    cache = cut(at_once(TOKENS, [5, 0, CAPACITY]), jnp.array([CAPACITY, 9, CAPACITY + 100]))
    assert_same_bits(cache, at_once(TOKENS, [5, 0, CAPACITY]))


def test_lengths_stop_at_the_capacity():
    cache = advance(empty(), jnp.array([CAPACITY - 1, 0, 3]))
    cache = advance(cache, jnp.array([5, 0, 1]))
    np.testing.assert_array_equal(cache.lengths, [CAPACITY, 0, 4])


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("f32", 32),
        ("bf16", 16),
        ("f16", 16),
        ("q8_0", 8.5),
        ("q4_0", 4.5),
        ("q4_0:rotate", 4.5),
        ("f16/q4_0", 10.25),
        ("delta", 5.0),
        ("delta:interval=16", 5.5),
        ("delta:interval=64/q4_0", 4.625),
        # refinements of 4 sinks, 64 tokens and 16 spare rows, in 4 bits and a scale for each 64
        ("layered", 4.125 * (1 + 84 / 512)),
        ("layered:bits=3:window=0:sinks=0", 3.125),
        ("layered:bits=2:block=32:window=0:sinks=0", 2.25),
        ("layered:window=0:sinks=0:centre", 4.125 + 16 / 512),
    ],
)
def test_bits_per_value_at_512_tokens(text, bits):
    """Everything is counted: scales, keyframes, unused slots."""
    cache = make_cache(parse_spec(text), layers=3, kv_heads=2, head_dim=64, capacity=512)
    assert bits_per_value(cache) == bits
    assert parse_spec("delta") != parse_spec(text) or bits <= 5.05


def test_rounding_up_to_whole_groups_is_counted():
    make = lambda capacity: make_cache(
        parse_spec("delta/f16"), layers=1, kv_heads=1, head_dim=32, capacity=capacity
    )
    assert cache_bytes(make(33)) == cache_bytes(make(64))
    assert bits_per_value(make(33)) == bits_per_value(make(64)) * 64 / 33


def test_bytes_are_those_of_all_leaves_but_the_counters():
    cache = at_once(TOKENS, [5, 0, CAPACITY])
    leaves = jax.tree.leaves(cache)
    counters = [leaf for leaf in leaves if leaf.dtype == jnp.int32]
    assert len(counters) == 1
    assert cache_bytes(cache) == sum(leaf.nbytes for leaf in leaves) - counters[0].nbytes
    assert cache_bytes(cache) == cache_bytes(jax.eval_shape(empty))
    values = 2 * LAYERS * BATCH * leaves[0].shape[2] * HEAD_DIM * CAPACITY
    assert bits_per_value(cache) == 8 * cache_bytes(cache) / values


def test_layers_of_one_kind_are_stacked():
    """Tokens of one kv head are contiguous: [l, b, k, rows, width]."""
    cache = empty()
    assert len(cache.stacks) == len(set(KINDS)) < LAYERS
    for layer, spec in enumerate(SPECS):
        kind, row = cache.layout.find(layer)
        assert cache.layout.kinds[kind] == spec
        assert row == SPECS[:layer].count(spec)
        for leaf in jax.tree.leaves(cache.stacks[kind]):
            assert leaf.shape[:3] == (SPECS.count(spec), BATCH, 2)
    places = [tuple(map(int, cache.layout.find(layer))) for layer in range(LAYERS)]
    assert len(set(places)) == LAYERS


def test_a_head_dim_that_does_not_fit_is_the_users_error():
    with pytest.raises(UserError, match="multiple of 32, this model's is 8"):
        make_cache(parse_spec("f16/delta"), layers=1, kv_heads=1, head_dim=8, capacity=4)
    with pytest.raises(ValueError, match="2 specs for 3 layers"):
        make_cache(SPECS[:2], layers=3, kv_heads=1, head_dim=32, capacity=4)
