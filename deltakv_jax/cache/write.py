"""Writing tokens: any number, at any phase of the groups, each sequence at its own length.

A write touches a window of whole groups in each sequence. The window is read, the new tokens are
encoded behind the stored ones, and it is put back in place; rows that are not new keep their bits.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from deltakv_jax.cache.state import KVCache, Stack, tokens_per_row
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
      k: keys as they are to be stored, that is after RoPE.
      v: values.
      counts: tokens of each sequence that are not padding.
    """
    kind_of, row = cache.layout.find(layer)
    stacks = []
    for index, (kind, stack) in enumerate(zip(cache.layout.kinds, cache.stacks, strict=True)):
        mine = jnp.where(kind_of == index, counts, 0) if len(cache.stacks) > 1 else counts
        side = partial(_write_side, cache.lengths, mine, cache.capacity, row)
        stacks.append(Stack(side(kind.k, stack.k, k), side(kind.v, stack.v, v)))
    return dataclasses.replace(cache, stacks=tuple(stacks))


def _write_side(
    lengths: Array, counts: Array, capacity: int, row: Array, side: Format, leaves: Leaves, x: Array
) -> Leaves:
    """`leaves` [l, b, k, rows, width] with x [b, t, k, d] written to layer `row`."""
    x = jnp.swapaxes(x, 1, 2).astype(jnp.float32)
    per = {key: tokens_per_row(side, key, x.shape[3]) for key in leaves}
    size, start = _window(side, leaves, per, lengths, x.shape[2])
    old = {
        key: _get(leaf, row, start // per[key], size // per[key]) for key, leaf in leaves.items()
    }
    end = jnp.minimum(lengths + counts, capacity)
    if x.shape[2] == 1:
        n = jnp.broadcast_to((lengths - start)[:, None], x.shape[:2])
        written, start = side.append(x, old, n), lengths
    else:
        written = side.encode(*_aligned(x, lengths, end, start, size), old)
    starts = {key: start // per[key] for key in leaves}
    return _put(leaves, row, starts, written, end > lengths)


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
