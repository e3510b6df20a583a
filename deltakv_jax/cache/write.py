"""Writing tokens: any number, at any phase of the groups, each sequence at its own length.

A write touches a window of whole groups in each sequence. The window is read, the new tokens are
encoded behind the stored ones, and it is put back in place; rows that are not new keep their bits.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from deltakv_jax.cache.state import (
    KVCache,
    Sides,
    ring_rows,
    ring_tokens,
    take_rows,
    tokens_per_row,
)
from deltakv_jax.codec import Format, Leaves
from deltakv_jax.typed import typed


@typed
def write(
    cache: KVCache,
    layer: Int32[Array, ""] | int,
    k: Float[Array, "b t k d"],
    v: Float[Array, "b t k d"],
    counts: Int32[Array, " b"],
) -> KVCache:
    """`cache` with K and V of `counts` more tokens in one layer, behind `cache.lengths`.

    Tokens from `counts` on are padding, and tokens beyond the capacity do not fit: neither is
    written. The lengths stay as they are until `advance`.

    Args:
      cache: the cache.
      layer: the layer, which may be traced.
      k: keys as they are to be stored, that is after RoPE, less their centre.
      v: values, less their centre.
      counts: tokens of each sequence that are not padding.
    """
    return write_and_refine(cache, layer, k, v, counts)[0]


@typed
def write_and_refine(
    cache: KVCache,
    layer: Int32[Array, ""] | int,
    k: Float[Array, "b t k d"],
    v: Float[Array, "b t k d"],
    counts: Int32[Array, " b"],
) -> tuple[KVCache, tuple[Sides, ...]]:
    """The same, and for each stack the refinements that its new tokens read of each other.

    Refinements are leaves [b, k, window - 1 + t, width]: of the tokens before the new ones, as the
    ring had them before it was written, and of the new ones.
    """
    kind_of, row = cache.layout.find(layer)
    stacks, refined = [], []
    for index, (kind, stack) in enumerate(zip(cache.layout.kinds, cache.stacks, strict=True)):
        mine = jnp.where(kind_of == index, counts, 0) if len(cache.stacks) > 1 else counts
        side = partial(_write_side, cache.lengths, mine, cache.capacity, row)
        keys = side(kind.k, stack.k, stack.near.k, k)
        values = side(kind.v, stack.v, stack.near.v, v)
        near = Sides(keys.near, values.near)
        stacks.append(dataclasses.replace(stack, k=keys.leaves, v=values.leaves, near=near))
        refined.append(Sides(keys.band, values.band))
    return dataclasses.replace(cache, stacks=tuple(stacks)), tuple(refined)


class _Written(NamedTuple):
    """One side after a write.

    Attributes:
      leaves: of packed rows, [l, b, k, rows, width].
      near: of refinements, likewise.
      band: the refinements [b, k, window - 1 + t, width] that the new tokens read.
    """

    leaves: Leaves
    near: Leaves
    band: Leaves


def _write_side(
    lengths: Array,
    counts: Array,
    capacity: int,
    row: Array,
    side: Format,
    leaves: Leaves,
    near: Leaves,
    x: Array,
) -> _Written:
    """The leaves with x [b, t, k, d] written to layer `row`."""
    x = jnp.swapaxes(x, 1, 2).astype(jnp.float32)
    per = {key: tokens_per_row(side, key, x.shape[3]) for key in leaves}
    size, start = _window(side, leaves, per, lengths, x.shape[2])
    old = {
        key: _get(leaf, row, start // per[key], size // per[key]) for key, leaf in leaves.items()
    }
    end = jnp.minimum(lengths + counts, capacity)
    if x.shape[2] == 1:
        n = jnp.broadcast_to((lengths - start)[:, None], x.shape[:2])
        aligned, written, start = x, side.append(x, old, n), lengths
    else:
        aligned, new = _aligned(x, lengths, end, start, size)
        written = side.encode(aligned, new, old)
    starts = {key: start // per[key] for key in leaves}
    live = end > lengths
    put = _put(leaves, row, starts, written, live)
    if not near:
        return _Written(put, {}, {})
    fresh = _behind(side.refine(aligned, written), lengths - start, x.shape[2])
    return _Written(put, *_refined(side, near, row, fresh, lengths, end))


def _behind(rows: Leaves, first: Array, count: int) -> Leaves:
    """`count` rows of [b, k, size, width] from row `first` [b] on."""
    at = first[:, None] + jnp.arange(count)
    return {key: take_rows(leaf, at) for key, leaf in rows.items()}


def _refined(
    side: Format, near: Leaves, row: Array, fresh: Leaves, lengths: Array, end: Array
) -> tuple[Leaves, Leaves]:
    """The leaves `near` with the refinements [b, k, t, width] of new tokens, and the band."""
    old = {
        key: jax.lax.dynamic_index_in_dim(leaf, row, keepdims=False) for key, leaf in near.items()
    }
    sinks = jnp.broadcast_to(jnp.arange(side.sinks), (len(lengths), side.sinks))
    tokens = jnp.concatenate([sinks, ring_tokens(side, end)], axis=1)  # of each row, now
    new = (tokens >= lengths[:, None]) & (tokens < end[:, None])
    place = lambda key: take_rows(fresh[key], tokens - lengths[:, None])
    rows = {key: jnp.where(new[:, None, :, None], place(key), old[key]) for key in near}
    starts = dict.fromkeys(near, jnp.zeros_like(lengths))
    before = lengths[:, None] - jnp.arange(side.window - 1, 0, -1)
    band = {
        key: jnp.concatenate([take_rows(old[key], ring_rows(side, before)), fresh[key]], axis=2)
        for key in near
    }
    return _put(near, row, starts, rows, end > lengths), band


def _window(
    side: Format, leaves: Leaves, per: dict[str, int], lengths: Array, t: int
) -> tuple[int, Array]:
    """Tokens, and the first one [b], of the whole groups that t tokens behind `lengths` touch."""
    total = next(leaf.shape[3] * per[key] // side.interval for key, leaf in leaves.items())
    groups = min((t + side.interval - 2) // side.interval + 1, total)
    first = jnp.minimum(lengths // side.interval, total - groups)
    return groups * side.interval, first * side.interval


def _aligned(x: Array, lengths: Array, end: Array, start: Array, size: int) -> tuple[Array, Array]:
    """The window [b, k, size, d] with x [b, k, t, d] in its place, and where it is new."""
    at = start[:, None] + jnp.arange(size)
    new = (at >= lengths[:, None]) & (at < end[:, None])
    source = jnp.clip(at - lengths[:, None], 0, x.shape[2] - 1)[:, None, :, None]
    aligned = jnp.take_along_axis(x, source, axis=2)
    return aligned, jnp.broadcast_to(new[:, None], aligned.shape[:3])


def _get(leaf: Array, row: Array, starts: Array, size: int) -> Array:
    """[b, k, size, width]: the window of each sequence in layer `row` of one leaf."""
    _, batch, kv_heads, _, width = leaf.shape
    window = (1, 1, kv_heads, size, width)
    one = lambda b: jax.lax.dynamic_slice(leaf, (row, b, 0, starts[b], 0), window)[0, 0]
    return jax.lax.map(one, jnp.arange(batch))


def _put(leaves: Leaves, row: Array, starts: Leaves, rows: Leaves, live: Array) -> Leaves:
    """`leaves` with the windows [b, k, size, width] of the `live` sequences [b] put back.

    A loop over the sequences, since XLA:CPU would rewrite a scatter to a loop over every row. Its
    bound is traced: a loop of known length 1 would be inlined, the reading of the old rows fused
    into the update, and the whole leaf copied in every layer because it is still being read.
    """
    order = jnp.argsort(~live)

    def put(i: Array, leaves: Leaves) -> Leaves:
        b = order[i]
        return {
            key: jax.lax.dynamic_update_slice(
                leaf, rows[key][b][None, None], (row, b, 0, starts[key][b], 0)
            )
            for key, leaf in leaves.items()
        }

    return jax.lax.fori_loop(0, jnp.sum(live), put, leaves)
