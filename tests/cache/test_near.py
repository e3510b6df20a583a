"""Refinements of the first and the last tokens: where they lie, and what a roll-back leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltakv_jax.cache import KVCache, Near, make_cache, truncate
from deltakv_jax.cache.near import near_tokens
from deltakv_jax.cache.state import SPARE
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from tests.cache.material import (
    BATCH,
    CAPACITY,
    EXAMPLES,
    HEAD_DIM,
    KV_HEADS,
    PIECE,
    Tokens,
    assert_same_bits,
    drip,
    empty,
    fill,
)

WINDOW, SINKS = 6, 2
KINDS = (
    f"layered:window={WINDOW}:sinks={SINKS}",
    f"layered:bits=3:window={WINDOW}:sinks={SINKS}/q4_0",
    f"layered:bits=2:window={WINDOW}:sinks=0",
)
SPECS = tuple(map(parse_spec, KINDS))
LENGTHS = st.tuples(*[st.integers(0, CAPACITY)] * BATCH)
PIECES = st.lists(st.tuples(*[st.integers(0, PIECE)] * BATCH), min_size=1, max_size=6).map(
    lambda pieces: np.diff(np.minimum(np.cumsum(pieces, axis=0), CAPACITY), axis=0, prepend=0)
)
cut = jax.jit(truncate)


def tokens_of(seed: int) -> Tokens:
    whole = Tokens.random(seed)
    return Tokens(whole.k[: len(KINDS)], whole.v[: len(KINDS)])


TOKENS = tokens_of(3)


def at_once(tokens: Tokens, lengths) -> KVCache:
    return fill(empty(SPECS), tokens, lengths, size=CAPACITY)


@given(st.integers(0, 2**32 - 1), PIECES)
@EXAMPLES
def test_any_chunking_gives_the_bytes_of_one_step(seed, pieces):
    """The ring included: a piece may be longer than it, and end at any of its rows."""
    tokens = tokens_of(seed)
    assert_same_bits(fill(empty(SPECS), tokens, pieces), at_once(tokens, pieces.sum(axis=0)))


@given(st.integers(0, 2**32 - 1), LENGTHS)
@EXAMPLES
def test_token_by_token_gives_the_bytes_of_one_step(seed, lengths):
    tokens = tokens_of(seed)
    got = fill(empty(SPECS), tokens, [lengths], size=CAPACITY, step=drip)
    assert_same_bits(got, at_once(tokens, lengths))


def near_in_layer(cache: KVCache, layer: int) -> Near:
    near = near_tokens(cache, layer, jnp.int32(0), cache.lengths - 1, None)
    assert near is not None
    return near


@jax.jit
def near_of(cache: KVCache) -> list[tuple]:
    """What one more query of each sequence would read refined, in each layer."""
    newest = cache.lengths - 1
    layers = range(len(SPECS))
    found = [near_in_layer(cache, layer) for layer in layers]
    held = lambda near, x: jnp.where(near.seen(newest[:, None])[..., None], x, 0)
    return [tuple(held(near, x) for x in (*near.k, *near.v)) for near in found]


@given(LENGTHS, st.tuples(*[st.integers(0, SPARE)] * BATCH), st.integers(0, PIECE))
@example(lengths=(CAPACITY,) * BATCH, off=(SPARE,) * BATCH, more=3)
@EXAMPLES
def test_as_many_as_are_spare_may_be_cut_off(lengths, off, more):
    """What is read then is as if the later tokens had never been; and so it goes on."""
    kept = np.maximum(np.subtract(lengths, off), 0)
    cache, want = cut(at_once(TOKENS, lengths), jnp.array(kept)), at_once(TOKENS, kept)
    packed = lambda cache: [(stack.k, stack.v) for stack in cache.stacks]
    for got, exact in ((packed(cache), packed(want)), (near_of(cache), near_of(want))):
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
            np.testing.assert_array_equal(a, b)
    other, more = tokens_of(4), np.minimum(more, CAPACITY - kept)
    pair = (fill(one, other, [more], starts=kept) for one in (cache, want))
    for a, b in zip(*(jax.tree.leaves(near_of(one)) for one in pair), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_left_the_ring_is_read_as_packed_after_a_longer_roll_back():
    """Less precise and never wrong: no row of another token is added."""
    kept = CAPACITY - SPARE - WINDOW - 3
    cache = cut(at_once(TOKENS, [CAPACITY] * BATCH), jnp.array([kept] * BATCH))
    near = near_in_layer(cache, 0)
    spec = SPECS[0]
    rows = np.asarray(near.tokens[0])
    packed = spec.k.terms({key: leaf[0][:, :, rows] for key, leaf in cache.stacks[0].k.items()})
    for got, want in zip(near.k, packed, strict=True):
        np.testing.assert_array_equal(got[:, :, SINKS:], want[:, :, SINKS:])
        assert np.any(got[:, :, :SINKS] != want[:, :, :SINKS])


def test_a_ring_row_belongs_to_one_token_in_every_window_and_beyond_by_the_spare_rows():
    cache = empty(SPECS)
    for stack, spec in zip(cache.stacks, SPECS, strict=True):
        for leaves, side in ((stack.near.k, spec.k), (stack.near.v, spec.v)):
            rows = side.sinks + (side.window + SPARE if side.window else 0)
            assert {leaf.shape[3] for leaf in leaves.values()} == ({rows} if rows else set())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("layered:window=8/layered:window=9", "give both one window and sinks"),
        ("layered:sinks=8/layered", "give both one window and sinks"),
        ("layered:window=0/layered:sinks=0", "give both one window and sinks"),
        ("layered/delta", "one that packs tokens one by one"),
    ],
)
def test_sides_that_do_not_go_together_are_the_users_error(text, says):
    with pytest.raises(UserError, match=says):
        make_cache(parse_spec(text), layers=1, kv_heads=KV_HEADS, head_dim=HEAD_DIM, capacity=4)


def test_a_side_without_a_window_goes_with_one_that_has_it():
    cache = make_cache(
        parse_spec("layered/layered:window=0:sinks=0"),
        layers=1,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=4,
    )
    assert cache.stacks[0].near.k
    assert not cache.stacks[0].near.v
