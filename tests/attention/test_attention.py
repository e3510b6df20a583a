"""Attention over the packed form against the float32 reference, row by row, on the same codes.

The codes are random bits: no encoder stands between the two. One cache has a layer for every
format on either side, so that a few programs serve all formats, lengths and phases.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention import tiled as tiled_module
from deltakv_jax.attention.reference import attend_reference
from deltakv_jax.attention.tiled import attend_tiled
from deltakv_jax.cache import KVCache, make_cache, read
from deltakv_jax.codec import Format, Leaves, parse_spec
from tests.cache.material import random_bits, swapped_for_k

KINDS = (
    "f32/q8_0",
    "bf16/f16",
    "q8_0/q4_0:rotate",
    "q4_0:rotate/q4_0",
    "q4_0/delta:interval=4",
    "delta/f32",
    "delta:rotate:interval=16/delta:interval=6",
    "layered:bits=2:window=0:sinks=0/layered:bits=3:window=0:sinks=0",
)
HEAD_DIM, KV_HEADS, CAPACITY = 32, 2, 1219  # two tiles or three, the last one short, and spare rows
INTERVALS = (4, 6, 16, 32)
RATIO, BATCH = 4, 6
MANY = 20  # query tokens of a prefill; times RATIO, more than the values of a head
TOLERANCE = 1e-5

tiled, reference = jax.jit(attend_tiled), jax.jit(attend_reference)
RNG = np.random.default_rng(0)


def make(kinds, *, batch: int = BATCH, capacity: int = CAPACITY) -> KVCache:
    """A cache of random bits with a layer per kind."""
    cache = make_cache(
        tuple(map(parse_spec, kinds)),
        layers=len(kinds),
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=capacity,
        batch=batch,
    )
    return random_bits(cache)


CACHE = make(KINDS)
LAYERS = [pytest.param(jnp.int32(layer), id=kind) for layer, kind in enumerate(KINDS)]


def queries(tokens: int, heads: int = RATIO * KV_HEADS, batch: int = BATCH) -> jax.Array:
    return jnp.array(RNG.standard_normal((batch, tokens, heads, HEAD_DIM)), jnp.float32)


def ending_at(lengths, tokens: int = 1) -> jax.Array:
    """Positions [b, t] of the last tokens of sequences of these lengths."""
    first = np.maximum(np.array(lengths)[:, None] - tokens, 0)
    return jnp.array(first + np.arange(tokens), jnp.int32)


def row_errors(got, want) -> np.ndarray:
    """The relative error of each output row: no row can hide behind the others."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)


def lengths_about(interval: int) -> list[int]:
    """Ragged, with a remainder of a group and more than one tile."""
    return [1, interval - 1, interval, interval + 1, 3 * interval + 5, 1200 + interval % 7]


@pytest.mark.parametrize("layer", LAYERS)
def test_decoding(layer):
    """One query token a step, at ragged lengths; the reference has all steps in one."""
    drawn = RNG.integers(1, CAPACITY + 1, (MANY - 6, BATCH))
    about_tiles = [2, 511, 512, 513, 1024, 1025], [CAPACITY] + [1] * 5
    steps = np.array([*map(lengths_about, INTERVALS), *about_tiles, *drawn])
    q, positions = queries(MANY), jnp.array(steps.T - 1, jnp.int32)
    want = reference(q, positions, CACHE, layer)
    for t in range(MANY):
        got = tiled(q[:, t : t + 1], positions[:, t : t + 1], CACHE, layer)
        assert row_errors(got, want[:, t : t + 1]).max() <= TOLERANCE, steps[t]


@pytest.mark.parametrize("layer", LAYERS)
def test_prefill_agrees_with_the_reference_and_with_decoding(layer):
    """Whether one query token reads a tile or more of them than a head has values."""
    for lengths in (lengths_about(32), [CAPACITY, 511, 515, 3, 30, 31]):
        q, positions = queries(MANY), ending_at(lengths, MANY)
        want = reference(q, positions, CACHE, layer)
        many = tiled(q, positions, CACHE, layer)
        one = tiled(q[:, :1], positions[:, :1], CACHE, layer)
        for got in (many, one):
            assert row_errors(got, want[:, : got.shape[1]]).max() <= TOLERANCE
            assert row_errors(got, many[:, : got.shape[1]]).max() <= TOLERANCE


def attend_by_hand(q, positions, k, v) -> np.ndarray:
    """softmax(q @ k.T / sqrt(d)) @ v, a row at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    share = q.shape[2] // k.shape[1]
    for b, t, h in np.ndindex(q.shape[:3]):
        keys, values = (x[b, h // share, : positions[b, t] + 1] for x in (k, v))
        scores = keys @ q[b, t, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("ratio", [1, 4])
def test_query_heads_share_kv_heads_in_order(ratio):
    """Both ways of computing it, against a loop over heads."""
    cache = make(("delta:interval=16/delta:interval=4",), batch=2, capacity=70)
    q, positions = queries(2, ratio * KV_HEADS, batch=2), ending_at([70, 41], 2)
    want = attend_by_hand(q, positions, *read(cache, 0))
    for attention in (tiled, reference):
        assert row_errors(attention(q, positions, cache, jnp.int32(0)), want).max() <= TOLERANCE


@pytest.mark.parametrize("layer", LAYERS)
def test_what_stands_behind_a_position_is_not_seen(layer):
    """Whatever tile it is in."""
    behind = random_bits(CACHE, seed=1)
    lengths = jnp.array([1, 31, 512, 513, 600, 1200])
    q, positions = queries(1), ending_at(lengths)
    cut = lambda ours, theirs: jnp.where(
        (jnp.arange(ours.shape[3]) < lengths[:, None])[None, :, None, :, None], ours, theirs
    )
    token_rows = lambda ours, theirs: cut(ours, theirs) if ours.shape[3] >= CAPACITY else ours
    stacks = jax.tree.map(token_rows, CACHE.stacks, behind.stacks)
    mixed = dataclasses.replace(CACHE, stacks=stacks)
    want = tiled(q, positions, CACHE, layer)
    assert row_errors(tiled(q, positions, mixed, layer), want).max() <= TOLERANCE


CHAIN = make(("delta:interval=4",), batch=2, capacity=70)


@pytest.mark.parametrize("values", [1, 2 * KV_HEADS * HEAD_DIM * 13])
def test_tiles_are_whole_groups_however_small(values, monkeypatch):
    """One group a tile, and three: as many as a large batch leaves room for."""
    monkeypatch.setattr(tiled_module, "_TILE_VALUES", values)
    q, positions = queries(1, batch=2), ending_at([70, 41])
    got = jax.jit(lambda *inputs: attend_tiled(*inputs))(q, positions, CHAIN, jnp.int32(0))
    assert row_errors(got, reference(q, positions, CHAIN, jnp.int32(0))).max() <= TOLERANCE


# The comparison must be able to fail: each fault is far outside the tolerance.


def test_the_comparison_sees_k_in_place_of_v():
    q, positions = queries(1, batch=2), ending_at([70, 41])
    want = reference(q, positions, CHAIN, jnp.int32(0))
    assert row_errors(tiled(q, positions, CHAIN, jnp.int32(0)), want).max() <= TOLERANCE
    wrong = tiled(q, positions, swapped_for_k(CHAIN), jnp.int32(0))
    assert row_errors(wrong, want).min() > 0.1


@pytest.mark.parametrize("layer", LAYERS)
def test_the_comparison_sees_one_token_too_many_and_one_too_few(layer):
    q, positions = queries(MANY), ending_at([MANY + 1, 31, 33, 101, 512, 1200], MANY)
    want = reference(q, positions, CACHE, layer)
    for off in (1, -1):
        wrong = tiled(q, positions + off, CACHE, layer)
        assert row_errors(wrong, want).max(axis=-1).min() > 10 * TOLERANCE


def attend_in_terms(q, k_terms, v_terms, k_groups, v_groups, *, backwards=True) -> np.ndarray:
    """One query over terms [s, d], whose running sums in groups [s] are K and V, in float64.

    Scores are running sums of q.e_j along each group; V's terms are weighted with the reversed
    running sums of the weights. The arguments leave room for the faults that this invites.
    """
    in_group = lambda groups: groups[:, None] == groups
    earlier = np.tri(len(k_terms)) * in_group(k_groups)  # [s, j]: e_j is in r_s
    scores = earlier @ (k_terms @ q) / np.sqrt(q.size)
    weights = np.exp(scores - scores.max())
    later = np.tri(len(v_terms)).T * in_group(v_groups)  # [j, s]
    return (later if backwards else later.T) @ weights @ v_terms / weights.sum()


def terms_by_hand(side: Format, leaves: Leaves) -> np.ndarray:
    """A keyframe, then the differences of its group: [s, d]."""
    terms = np.array(side.join(side.terms(leaves)), np.float64)
    terms[:: side.interval] = side.base(leaves)
    return terms


def test_the_comparison_sees_a_sum_that_crosses_a_groups_end_or_is_not_reversed():
    n, s = 4, 39
    side, stack = CHAIN.layout.kinds[0].k, jax.tree.map(lambda x: x[0, 0, 0], CHAIN.stacks[0])
    k, v = (terms_by_hand(side, leaves)[:s] for leaves in (stack.k, stack.v))
    q = queries(1, batch=2)
    want = reference(q, ending_at([s, s]), CHAIN, jnp.int32(0))[0, 0, 0]
    row, groups, joined = np.float64(q[0, 0, 0]), np.arange(s) // n, np.arange(s) // (2 * n)
    right = attend_in_terms(row, k, v, groups, groups)
    assert row_errors(right, want) <= TOLERANCE
    for wrong in (
        attend_in_terms(row, k, v, joined, groups),
        attend_in_terms(row, k, v, groups, joined),
        attend_in_terms(row, k, v, groups, groups, backwards=False),
    ):
        assert row_errors(wrong, want) > 0.01
