"""The same K and V give the same bytes, in whatever steps, programs and company they come."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deltakv_jax.cache import read, write
from deltakv_jax.codec import parse_spec
from tests.cache.material import (
    BATCH,
    CAPACITY,
    DELTAS,
    EXAMPLES,
    HEAD_DIM,
    KINDS,
    KV_HEADS,
    PIECE,
    SPECS,
    TRACES,
    Tokens,
    assert_same_bits,
    at_once,
    drip,
    empty,
    fill,
    in_pieces,
    sequence,
    write_layers,
)

TOKENS = Tokens.random(0)
LENGTHS = st.tuples(*[st.integers(0, CAPACITY)] * BATCH)
PIECES = st.lists(st.tuples(*[st.integers(0, PIECE)] * BATCH), min_size=1, max_size=6).map(
    lambda pieces: np.diff(np.minimum(np.cumsum(pieces, axis=0), CAPACITY), axis=0, prepend=0)
)


@given(st.integers(0, 2**32 - 1), PIECES)
@EXAMPLES
def test_any_chunking_at_any_phase_gives_the_bytes_of_one_step(seed, pieces):
    """Ragged: each sequence has its own chunks, its own phase, and garbage in its padding."""
    tokens = Tokens.random(seed)
    assert_same_bits(fill(empty(), tokens, pieces), at_once(tokens, pieces.sum(axis=0)))


@given(st.integers(0, 2**32 - 1), LENGTHS)
@EXAMPLES
def test_token_by_token_gives_the_bytes_of_one_step(seed, lengths):
    tokens = Tokens.random(seed)
    got = fill(empty(), tokens, [lengths], size=CAPACITY, step=drip)
    assert_same_bits(got, at_once(tokens, lengths))


@given(PIECES, LENGTHS)
@EXAMPLES
def test_tokens_appended_to_a_prompt_give_the_bytes_of_one_step(pieces, lengths):
    held = pieces.sum(axis=0)
    rest = np.maximum(lengths, held) - held
    cache = fill(empty(), TOKENS, pieces)
    cache = fill(cache, TOKENS, [rest], size=CAPACITY, step=drip, starts=held)
    assert_same_bits(cache, at_once(TOKENS, held + rest))


def test_a_sequence_does_not_see_the_rest_of_the_batch():
    together = at_once(TOKENS, [CAPACITY, 17, 30])
    for b, length in enumerate([CAPACITY, 17, 30]):
        lengths = np.where(np.arange(BATCH) == b, length, 0)
        assert_same_bits(sequence(at_once(TOKENS, lengths), b), sequence(together, b))


def test_vmap_over_sequences_gives_the_bytes_of_a_batch():
    """A batch of caches of one sequence and one layer each: alone, and of one kind."""
    layer = KINDS.index(DELTAS)
    lengths = np.array([11, 0, 25])
    alone = jax.vmap(lambda _: empty([SPECS[layer]], batch=1))(jnp.arange(BATCH))
    step = jax.jit(jax.vmap(write_layers))
    for counts, starts in zip(in_pieces(lengths), [lengths * 0, lengths * 0 + PIECE], strict=True):
        piece = TOKENS.piece(starts, counts, PIECE)
        k, v = (np.moveaxis(x[layer][None], 1, 0)[:, :, None] for x in (piece.k, piece.v))
        alone = step(alone, k, v, jnp.array(counts)[:, None])
    together = fill(empty(), TOKENS, in_pieces(lengths))
    np.testing.assert_array_equal(alone.lengths[:, 0], together.lengths)
    stacks = jax.tree.leaves(alone.stacks), jax.tree.leaves(together.stacks[layer])
    for got, want in zip(*stacks, strict=True):
        np.testing.assert_array_equal(got[:, 0, 0], want[0])


def test_an_eager_write_gives_the_bytes_of_a_compiled_one():
    counts = np.array([5, 0, 3])
    piece = TOKENS.piece(counts * 0, counts, 5)
    eager = write(
        empty(SPECS[:1]), 0, jnp.array(piece.k[0]), jnp.array(piece.v[0]), jnp.array(counts)
    )
    leaves = jax.tree.leaves(eager.stacks), jax.tree.leaves(at_once(TOKENS, counts).stacks[0])
    for got, want in zip(*leaves, strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_is_written_is_read_in_its_place():
    """Each layer, side, sequence, head and token: any other would be off by more than its size."""
    lengths = np.array([CAPACITY, 17, 0])
    cache = at_once(TOKENS, lengths)
    held = np.arange(CAPACITY) < lengths[:, None]
    for layer, kind in enumerate(KINDS):
        values = jax.jit(read)(cache, jnp.int32(layer))
        for got, x in zip(values, (TOKENS.k, TOKENS.v), strict=True):
            want = np.swapaxes(x[layer, :, :CAPACITY], 1, 2)
            error = np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)
            assert (error.max(axis=1)[held] < 0.6).all(), kind


@given(LENGTHS, st.tuples(*[st.integers(0, PIECE)] * BATCH))
@EXAMPLES
def test_what_does_not_fit_is_not_written(lengths, more):
    """Neither beyond the capacity into the spare rows of the last group, nor over what is held."""
    cache = fill(at_once(TOKENS, lengths), TOKENS, [more], starts=lengths)
    fits = np.minimum(np.add(lengths, more), CAPACITY)
    np.testing.assert_array_equal(cache.lengths, fits)
    assert_same_bits(cache, at_once(TOKENS, fits))
    full = [CAPACITY] * BATCH
    more = np.minimum(CAPACITY - fits + 5, CAPACITY)
    cache = fill(cache, TOKENS, [more], size=CAPACITY, step=drip, starts=fits)
    assert_same_bits(cache, at_once(TOKENS, full))


def test_an_empty_step_changes_nothing():
    lengths = [9, 0, CAPACITY]
    cache = fill(at_once(TOKENS, lengths), TOKENS, [[0, 0, 0]], starts=lengths)
    assert_same_bits(cache, at_once(TOKENS, lengths))


def test_only_the_layer_that_is_written_changes():
    """And the lengths wait for `advance`, so that all layers write at the same place."""
    one, read_layer = jax.jit(write), jax.jit(read)
    values = jnp.ones((BATCH, 4, KV_HEADS, HEAD_DIM))
    before = empty([parse_spec(text) for text in ("f16", "f32", "f16", "f32")])
    for layer in range(4):
        after = one(before, jnp.int32(layer), values, 2 * values, jnp.array([4, 1, 0]))
        for other in range(4):
            k, v = read_layer(after, jnp.int32(other))
            written = 1.0 * (other == layer)
            want = written * (np.arange(CAPACITY) < np.array([[4], [1], [0]]))
            np.testing.assert_array_equal(k[:, 0, :, 0], want)
            np.testing.assert_array_equal(v[:, 1, :, 5], 2 * want)
        np.testing.assert_array_equal(after.lengths, 0)


def test_a_sequence_that_grows_compiles_nothing_new():
    fill(empty(), TOKENS, [[1, 2, 3]])
    traced = dict(TRACES)
    fill(empty(), TOKENS, in_pieces([CAPACITY, 20, 1]))
    fill(empty(), TOKENS, [[PIECE, 0, 4], [1, 0, 0], [PIECE, PIECE, PIECE]])
    assert traced == TRACES


def test_the_donated_cache_is_used_up():
    """No leaf is copied, and none shares its buffer with another."""
    cache = empty()
    leaves = jax.tree.leaves(cache)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    fill(cache, TOKENS, [[1, 2, 3]])
    assert all(leaf.is_deleted() for leaf in leaves)


def test_values_of_another_width_are_cast_not_refused():
    """A model in bfloat16 writes bfloat16."""
    half = jnp.zeros((BATCH, 4, KV_HEADS, HEAD_DIM), jnp.bfloat16)
    got = jax.eval_shape(write, empty(), 0, half, half, jnp.array([4, 4, 4]))
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, empty())
