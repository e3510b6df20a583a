"""The state of a KV cache: what is packed, and how many tokens each sequence holds.

Every leaf is [l, b, k, rows, width]: layers of one kind, sequences, kv heads, one row per token
(or per group of tokens), numbers per row. The rows of one kv head are contiguous, for kernels;
the kv head has an axis of its own, for sharding. Groups count from each sequence's own token 0.
Rows that hold no token are zero, so that equal contents are equal bits.

Beside them stand the leaves of refinements, which have a row for each of the first tokens and then
a ring for the last ones: token t in row sinks + t mod (window + SPARE).
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from deltakv_jax.codec import Format, KVSpec, Leaves
from deltakv_jax.errors import UserError
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


SPARE = 16
"""Rows of a ring that no token reads: as many may be cut off and leave the others their own."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sides:
    """Leaves of K and of V; none where a format has none."""

    k: Leaves = dataclasses.field(default_factory=dict)
    v: Leaves = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stack:
    """What is stored of all layers of one kind: leaves [l, b, k, rows, width].

    Attributes:
      k, v: packed keys and values.
      near: refinements of the first and the last tokens.
      centre: float16, one row: what was taken off every token, of keys before RoPE.
    """

    k: Leaves
    v: Leaves
    near: Sides = dataclasses.field(default_factory=Sides)
    centre: Sides = dataclasses.field(default_factory=Sides)


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
    centre: Sides | None = None,
) -> KVCache:
    """An empty cache for `batch` sequences of up to `capacity` tokens.

    Args:
      spec: the format of every layer, or one per layer.
      layers: number of layers.
      kv_heads: key and value heads of a layer.
      head_dim: values per head.
      capacity: tokens per sequence; storage is rounded up to whole groups.
      batch: number of sequences.
      centre: the means "mean" [layers, kv_heads, head_dim] of K before RoPE and of V, for formats
        that take them off; zero if not given.

    Raises:
      UserError: where a format cannot hold this head_dim, or the sides do not go together.
    """
    specs = [spec] * layers if isinstance(spec, KVSpec) else list(spec)
    if len(specs) != layers:
        raise ValueError(f"{len(specs)} specs for {layers} layers")
    layout = Layout.of(specs)
    stacks = []
    for index, kind in enumerate(layout.kinds):
        shape = (layout.kind_of.count(index), batch, kv_heads)
        slots = _slots(kind, capacity)
        _check_windows(kind)
        members = [layer for layer, its in enumerate(layout.kind_of) if its == index]
        # K and V are built apart: one buffer in two donated leaves would be donated twice.
        packed, near = (
            Sides(k=make(kind.k), v=make(kind.v))
            for make in (
                partial(_empty, shape=shape, slots=slots, head_dim=head_dim),
                partial(_empty_near, shape=shape, head_dim=head_dim),
            )
        )
        means = _centres(kind, centre, members, (*shape, 1, head_dim))
        stacks.append(Stack(packed.k, packed.v, near, means))
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


def near_rows(side: Format) -> int:
    """Rows of a side's refinements."""
    return side.sinks + (side.window + SPARE if side.window else 0)


def _empty_near(side: Format, shape: tuple[int, ...], head_dim: int) -> Leaves:
    rows = near_rows(side)
    return {
        key: jnp.zeros((*shape, rows, leaf.width), leaf.dtype)
        for key, leaf in side.near_leaves(head_dim).items()
    }


def _centres(
    kind: KVSpec, centre: Sides | None, members: Sequence[int], shape: tuple[int, ...]
) -> Sides:
    """The means of these layers, for every sequence [l, b, k, 1, d]."""

    def side(format_: Format, means: Leaves) -> Leaves:
        if not format_.centre:
            return {}
        if "mean" not in means:
            return {"mean": jnp.zeros(shape, jnp.float16)}
        rows = jnp.asarray(means["mean"])[jnp.array(members), None, :, None]
        return {"mean": jnp.broadcast_to(rows, shape).astype(jnp.float16)}

    given = centre or Sides()
    return Sides(side(kind.k, given.k), side(kind.v, given.v))


def _check_windows(kind: KVSpec) -> None:
    refined = {(side.window, side.sinks) for side in (kind.k, kind.v)} - {(0, 0)}
    if len(refined) > 1:
        raise UserError(f"{kind}: K and V refine the same tokens; give both one window and sinks")
    if refined and (kind.k.chained or kind.v.chained):
        raise UserError(f"{kind}: a side that refines goes with one that packs tokens one by one")


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

    It equals, bit for bit, a cache that never held the later tokens; with a window, the tokens of
    which the ring still has the refinements are read as if it never had, which is all of them as
    long as at most `SPARE` tokens are cut off.
    """
    lengths, held = jnp.minimum(cache.lengths, lengths), cache.lengths

    def cut(side: Format, leaves: Leaves) -> Leaves:
        return {
            key: _cut_rows(leaf, lengths, tokens_per_row(side, key, cache.head_dim))
            for key, leaf in leaves.items()
        }

    def cut_near(side: Format, leaves: Leaves) -> Leaves:
        kept = _near_tokens(side, held)[:, :, None] < lengths[:, None, None]  # [b, rows, 1]
        return {key: jnp.where(kept[None, :, None], leaf, 0) for key, leaf in leaves.items()}

    stacks = tuple(
        dataclasses.replace(
            stack,
            k=cut(kind.k, stack.k),
            v=cut(kind.v, stack.v),
            near=Sides(cut_near(kind.k, stack.near.k), cut_near(kind.v, stack.near.v)),
        )
        for kind, stack in zip(cache.layout.kinds, cache.stacks, strict=True)
    )
    return dataclasses.replace(cache, stacks=stacks, lengths=lengths)


def _near_tokens(side: Format, lengths: Array) -> Array:
    """int32 [b, rows]: the token of each row of refinements, with so many tokens [b]; < 0: none."""
    sinks = jnp.broadcast_to(jnp.arange(side.sinks), (len(lengths), side.sinks))
    return jnp.concatenate([sinks, ring_tokens(side, lengths)], axis=1)


def ring_tokens(side: Format, lengths: Array) -> Array:
    """int32 [b, ring]: the last of so many tokens [b] that each row of the ring is for."""
    ring = near_rows(side) - side.sinks
    newest, rows = lengths[:, None] - 1, jnp.arange(ring)
    return newest - (newest - rows) % max(ring, 1)


def _cut_rows(leaf: Array, lengths: Array, tokens: int) -> Array:
    """`leaf` [l, b, k, rows, width] with the rows zero whose first token is cut off."""
    kept = jnp.arange(leaf.shape[3]) * tokens < lengths[:, None]
    return jnp.where(kept[None, :, None, :, None], leaf, 0)


def ring_rows(side: Format, tokens: Array) -> Array:
    """The row of refinements of each token that the ring holds; of tokens < 0 any."""
    ring = near_rows(side) - side.sinks
    return side.sinks + tokens % max(ring, 1)


def take_rows(leaf: Array, at: Array) -> Array:
    """Rows [b, n] of [b, k, rows, width]: [b, k, n, width]; those that are not there read any."""
    inside = jnp.clip(at, 0, leaf.shape[2] - 1)
    return jnp.take_along_axis(leaf, inside[:, None, :, None], axis=2)


def cache_bytes(cache: KVCache) -> int:
    """Bytes of all leaves but the integer counters; also of a cache of shapes only."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.stacks))


def bits_per_value(cache: KVCache) -> float:
    """Stored bits per value that the cache can hold, everything counted."""
    batch, kv_heads = jax.tree.leaves(cache.stacks)[0].shape[1:3]
    values = 2 * len(cache.layout.kind_of) * batch * kv_heads * cache.head_dim * cache.capacity
    return 8 * cache_bytes(cache) / values
