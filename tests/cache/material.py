"""A cache with a layer for every kind of format, and ways to fill it that share few programs.

Compiling dominates these tests. So every kind is a layer of one cache, shapes are few and fixed,
and what varies (lengths, counts, contents) is traced. The cache is donated at each step.
"""

import dataclasses
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from numpy.typing import ArrayLike

from deltakv_jax.cache import KVCache, Stack, advance, make_cache, write
from deltakv_jax.codec import Format, Leaves, parse_spec

EXAMPLES = settings(max_examples=12, deadline=None, derandomize=True)

# Each format but `layered` (see test_near.py) on one side at least, and groups of different lengths
# on the two sides of a layer. Two layers share a kind, with others between them.
DELTAS = "delta:interval=4/delta:rotate:interval=6"
KINDS = ("f16/q8_0", "q4_0/f32", DELTAS, "bf16/q4_0:rotate", "q4_0/f32")
SPECS = tuple(map(parse_spec, KINDS))
LAYERS, BATCH, KV_HEADS, HEAD_DIM = len(KINDS), 3, 2, 32
CAPACITY = 45  # no multiple of an interval: storage has spare rows that must stay empty
PIECE = 14  # tokens of a step: a window of a few groups, at any phase

TRACES = Counter()
"""How often `feed` was traced, by the number of tokens of a step."""


@dataclasses.dataclass(frozen=True)
class Tokens:
    """K and V of every layer, float32 [l, b, t, k, d] each."""

    k: np.ndarray
    v: np.ndarray

    @classmethod
    def random(cls, seed: int, tokens: int = CAPACITY + 2 * PIECE) -> "Tokens":
        """K that drifts and V that does not."""
        rng = np.random.default_rng(seed)
        shape = (LAYERS, BATCH, tokens, KV_HEADS, HEAD_DIM)
        k = rng.standard_normal(shape).cumsum(axis=2)
        return cls(k.astype(np.float32), rng.standard_normal(shape).astype(np.float32))

    def piece(self, starts: np.ndarray, counts: np.ndarray, size: int) -> "Tokens":
        """`counts` tokens of each sequence from `starts` on, and garbage in the padding."""
        padding = np.arange(size) >= counts[:, None]
        at = np.minimum(starts[:, None] + np.arange(size), self.k.shape[2] - 1)
        garbage = np.resize([np.nan, np.inf, -np.inf, 1e30], HEAD_DIM).astype(np.float32)
        cut = lambda x: np.where(
            padding[None, :, :, None, None],
            garbage,
            np.take_along_axis(x, at[None, :, :, None, None], axis=2),
        )
        return Tokens(cut(self.k), cut(self.v))


def empty(specs=SPECS, batch: int = BATCH, capacity: int = CAPACITY) -> KVCache:
    """A cache with one layer per spec."""
    return make_cache(
        specs,
        layers=len(specs),
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=capacity,
        batch=batch,
    )


def write_layers(cache: KVCache, k: jax.Array, v: jax.Array, counts: jax.Array) -> KVCache:
    """One step: `counts` tokens in every layer, by a scan over the layers."""
    TRACES[k.shape[2]] += 1
    layers = jnp.arange(k.shape[0])
    one = lambda cache, at: (write(cache, at[0], at[1], at[2], counts), None)
    return advance(jax.lax.scan(one, cache, (layers, k, v))[0], counts)


feed = partial(jax.jit, donate_argnums=0)(write_layers)


@partial(jax.jit, donate_argnums=0)
def drip(cache: KVCache, k: jax.Array, v: jax.Array, counts: jax.Array) -> KVCache:
    """Token by token, by a scan over the tokens."""

    def one(cache, t):
        token = lambda x: jax.lax.dynamic_slice_in_dim(x, t, 1, axis=2)
        return write_layers(cache, token(k), token(v), (t < counts).astype(jnp.int32)), None

    return jax.lax.scan(one, cache, jnp.arange(k.shape[2]))[0]


def fill(
    cache: KVCache,
    tokens: Tokens,
    pieces: ArrayLike,
    *,
    size: int = PIECE,
    step=feed,
    starts: ArrayLike = (0, 0, 0),
) -> KVCache:
    """Writes pieces [i, b], or one [b], of the sequences in steps of `size` tokens."""
    at = np.array(starts)
    for counts in np.array(pieces, np.int32).reshape(-1, len(at)):
        piece = tokens.piece(at, counts, size)
        cache = step(cache, piece.k, piece.v, jnp.array(counts))
        at = at + counts
    return cache


def in_pieces(lengths: ArrayLike, size: int = PIECE) -> np.ndarray:
    """Full pieces until each sequence has its length."""
    starts = np.arange(0, max(np.max(lengths), 1), size)[:, None]
    return np.clip(np.array(lengths) - starts, 0, size)


def at_once(tokens: Tokens, lengths: ArrayLike) -> KVCache:
    """An empty cache given all tokens in one step."""
    return fill(empty(), tokens, lengths, size=CAPACITY)


def flat(cache: KVCache) -> dict[str, np.ndarray]:
    """The bytes of every leaf, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(cache)
    return {jax.tree_util.keystr(path): np.asarray(x).view(np.uint8) for path, x in leaves}


def assert_same_bits(got: KVCache, want: KVCache) -> None:
    """Every leaf, bit for bit: NaN and the sign of zero included."""
    got_bits, want_bits = flat(got), flat(want)
    assert got_bits.keys() == want_bits.keys()
    for path, bits in want_bits.items():
        np.testing.assert_array_equal(got_bits[path], bits, err_msg=path)


def sequence(cache: KVCache, b: int) -> KVCache:
    """A cache of sequence b alone."""
    stacks = jax.tree.map(lambda leaf: leaf[:, b : b + 1], cache.stacks)
    return dataclasses.replace(cache, stacks=stacks, lengths=cache.lengths[b : b + 1])


def random_bits(cache: KVCache, seed: int = 0) -> KVCache:
    """Every row full of random codes, scales and values: a cache that nobody had to encode."""
    rng = np.random.default_rng(seed)

    def side(fmt: Format, leaves: Leaves) -> Leaves:
        drawn = {key: _random_leaf(rng, key, leaf) for key, leaf in leaves.items()}
        if fmt.chained:  # a keyframe's own slot stays zero
            own = (jnp.arange(leaves["codes"].shape[3]) % fmt.interval == 0)[:, None]
            empty_slot = lambda key: {key: jnp.where(own, 0, drawn[key]).astype(drawn[key].dtype)}
            drawn |= empty_slot("codes") | empty_slot("scales")
        return drawn

    kinds = zip(cache.layout.kinds, cache.stacks, strict=True)
    stacks = tuple(Stack(side(kind.k, stack.k), side(kind.v, stack.v)) for kind, stack in kinds)
    return dataclasses.replace(cache, stacks=stacks)


def _random_leaf(rng: np.random.Generator, key: str, leaf: jax.Array) -> jax.Array:
    if key == "scales" and leaf.dtype == jnp.uint8:  # of scales between 1/32 and 1/4
        return jnp.array(rng.integers(80, 104, leaf.shape), leaf.dtype)
    if leaf.dtype == jnp.uint8:
        return jnp.array(rng.integers(0, 256, leaf.shape), leaf.dtype)
    if key == "codes":  # spread about zero like 4-bit ones, so that no score drowns the others
        low, high = (-8, 8) if leaf.dtype == jnp.int8 else (0, 2**16)
        return jnp.array(rng.integers(low, high, leaf.shape), leaf.dtype)
    values = rng.standard_normal(leaf.shape).astype(np.float32)
    if key == "bits":  # of a bfloat16
        return jnp.array(values.view(np.uint32) >> 16, leaf.dtype)
    return jnp.array(values * (0.1 if key == "scales" else 1), leaf.dtype)


def swapped_for_k(cache: KVCache) -> KVCache:
    """The fault of reading K where V is meant; every layer's sides must have one format."""
    stacks = tuple(Stack(stack.k, jax.tree.map(jnp.copy, stack.k)) for stack in cache.stacks)
    return dataclasses.replace(cache, stacks=stacks)
