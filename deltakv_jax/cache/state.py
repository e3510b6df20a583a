"""The state of a KV cache: what is packed, and how many tokens each sequence holds.

Every leaf is [l, b, k, rows, width]: layers of one kind, sequences, kv heads, one row per token
(or per group of tokens), numbers per row. The rows of one kv head are contiguous, for kernels;
the kv head has an axis of its own, for sharding. Groups count from each sequence's own token 0.
Rows that hold no token are zero, so that equal contents are equal bits.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from deltakv_jax.codec import Format, KVSpec, Leaves
from deltakv_jax.typed import typed


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each layer lies: layers of one kind (one spec) are the rows of one stack.

    Attributes:
      kinds: the spec of each stack.
      kind_of: the stack of each layer.
      row_of: the row of each layer in its stack.
    """

    kinds: tuple[KVSpec, ...]
    kind_of: tuple[int, ...]
    row_of: tuple[int, ...]

    @classmethod
    def of(cls, specs: Sequence[KVSpec]) -> "Layout":
        """The layout of layers with these specs, stacks in order of first use."""
        kinds = tuple(dict.fromkeys(specs))
        kind_of = tuple(kinds.index(spec) for spec in specs)
        row_of = tuple(kind_of[:layer].count(kind) for layer, kind in enumerate(kind_of))
        return cls(kinds, kind_of, row_of)

    def find(self, layer: Int32[Array, ""] | int) -> tuple[Array, Array]:
        """The stack and the row of a layer, which may be traced: int32 scalars."""
        return jnp.array(self.kind_of)[layer], jnp.array(self.row_of)[layer]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """The stored K and V of all layers of one kind: leaves [l, b, k, rows, width]."""

    k: Leaves
    v: Leaves


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """A functional KV cache.

    Attributes:
      stacks: one per kind of layer.
      lengths: int32 [b], tokens that each sequence holds.
      layout: static; where each layer lies.
      capacity: static; tokens that each sequence may hold.
      head_dim: static; values per kv head and token.
    """

    stacks: tuple[Stack, ...]
    lengths: Array
    layout: Layout = dataclasses.field(metadata={"static": True})
    capacity: int = dataclasses.field(metadata={"static": True})
    head_dim: int = dataclasses.field(metadata={"static": True})


def make_cache(
    spec: KVSpec | Sequence[KVSpec],
    *,
    layers: int,
    kv_heads: int,
    head_dim: int,
    capacity: int,
    batch: int = 1,
) -> KVCache:
    """An empty cache for `batch` sequences of up to `capacity` tokens.

    Args:
      spec: the format of every layer, or one per layer.
      layers: number of layers.
      kv_heads: key and value heads of a layer.
      head_dim: values per head.
      capacity: tokens per sequence; storage is rounded up to whole groups.
      batch: number of sequences.

    Raises:
      UserError: where a format cannot hold this head_dim.
    """
    specs = [spec] * layers if isinstance(spec, KVSpec) else list(spec)
    if len(specs) != layers:
        raise ValueError(f"{len(specs)} specs for {layers} layers")
    layout = Layout.of(specs)
    stacks = []
    for index, kind in enumerate(layout.kinds):
        shape = (layout.kind_of.count(index), batch, kv_heads)
        slots = _slots(kind, capacity)
        # K and V are built apart: one buffer in two donated leaves would be donated twice.
        stacks.append(Stack(*(_empty(side, shape, slots, head_dim) for side in (kind.k, kind.v))))
    lengths = jnp.zeros(batch, jnp.int32)
    return KVCache(tuple(stacks), lengths, layout, capacity, head_dim)


def _slots(kind: KVSpec, capacity: int) -> int:
    """Token rows that hold `capacity` tokens in whole groups of both K and V."""
    period = math.lcm(kind.k.interval, kind.v.interval)
    return -(-capacity // period) * period


def _empty(side: Format, shape: tuple[int, ...], slots: int, head_dim: int) -> Leaves:
    return {
        key: jnp.zeros(
            (*shape, slots // tokens_per_row(side, key, head_dim), leaf.width), leaf.dtype
        )
        for key, leaf in side.leaves(head_dim).items()
    }


def tokens_per_row(side: Format, key: str, head_dim: int) -> int:
    """Tokens that one row of the leaf `key` stands for: 1, or those of a group."""
    return 1 if side.leaves(head_dim)[key].per == "token" else side.interval


@typed
def advance(cache: KVCache, counts: Int32[Array, " b"]) -> KVCache:
    """`cache` with `counts` more tokens in each sequence, once all layers are written."""
    lengths = jnp.minimum(cache.lengths + counts, cache.capacity)
    return dataclasses.replace(cache, lengths=lengths)


@typed
def truncate(cache: KVCache, lengths: Int32[Array, " b"]) -> KVCache:
    """`cache` with each sequence cut to at most `lengths` tokens.

    It equals, bit for bit, a cache that never held the later tokens.
    """
    lengths = jnp.minimum(cache.lengths, lengths)

    def cut(side: Format, leaves: Leaves) -> Leaves:
        return {
            key: _cut_rows(leaf, lengths, tokens_per_row(side, key, cache.head_dim))
            for key, leaf in leaves.items()
        }

    stacks = tuple(
        Stack(cut(kind.k, stack.k), cut(kind.v, stack.v))
        for kind, stack in zip(cache.layout.kinds, cache.stacks, strict=True)
    )
    return dataclasses.replace(cache, stacks=stacks, lengths=lengths)


def _cut_rows(leaf: Array, lengths: Array, tokens: int) -> Array:
    """`leaf` [l, b, k, rows, width] with the rows zero whose first token is cut off."""
    kept = jnp.arange(leaf.shape[3]) * tokens < lengths[:, None]
    return jnp.where(kept[None, :, None, :, None], leaf, 0)


def cache_bytes(cache: KVCache) -> int:
    """Bytes of all leaves but the integer counters; also of a cache of shapes only."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.stacks))


def bits_per_value(cache: KVCache) -> float:
    """Stored bits per value that the cache can hold, everything counted."""
    batch, kv_heads = jax.tree.leaves(cache.stacks)[0].shape[1:3]
    values = 2 * len(cache.layout.kind_of) * batch * kv_heads * cache.head_dim * cache.capacity
    return 8 * cache_bytes(cache) / values
