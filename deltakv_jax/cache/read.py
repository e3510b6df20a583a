"""Reading a layer: tile by tile as it is packed, or reconstructed whole."""

import jax
from jaxtyping import Array, Float32, Int32

from deltakv_jax.cache.state import KVCache, Stack, tokens_per_row
from deltakv_jax.codec import Format, Leaves
from deltakv_jax.typed import typed


@typed
def read_tile(
    cache: KVCache, kind: int, row: Int32[Array, ""], start: Int32[Array, ""] | int, size: int
) -> Stack:
    """The packed rows of `size` tokens from token `start` on, of every sequence.

    Args:
      cache: the cache.
      kind: index of the stack.
      row: the layer's row in that stack; may be traced.
      start: first token, a multiple of both intervals; may be traced.
      size: number of tokens, a multiple of both intervals.

    Returns:
      Leaves [b, k, size or groups of size, width].
    """

    def side(fmt: Format, leaves: Leaves) -> Leaves:
        per = {key: tokens_per_row(fmt, key, cache.head_dim) for key in leaves}
        return {
            key: _rows(leaf, row, start // per[key], size // per[key])
            for key, leaf in leaves.items()
        }

    spec, stack = cache.layout.kinds[kind], cache.stacks[kind]
    return Stack(side(spec.k, stack.k), side(spec.v, stack.v))


def _rows(leaf: Array, row: Array, start: Array | int, size: int) -> Array:
    _, batch, kv_heads, _, width = leaf.shape
    window = (1, batch, kv_heads, size, width)
    return jax.lax.dynamic_slice(leaf, (row, 0, 0, start, 0), window)[0]


@typed
def read(
    cache: KVCache, layer: Int32[Array, ""] | int
) -> tuple[Float32[Array, "b k s d"], Float32[Array, "b k s d"]]:
    """K and V of one layer, reconstructed whole: float32, s = capacity.

    Positions behind a sequence's length mean nothing: an open group goes on as its last value.
    """
    kind_of, row = cache.layout.find(layer)

    def whole(kind: int, row: Array) -> tuple[Array, Array]:
        spec, tile = cache.layout.kinds[kind], read_tile(cache, kind, row, 0, slots(cache, kind))
        k, v = spec.k.decode(tile.k), spec.v.decode(tile.v)
        return k[:, :, : cache.capacity], v[:, :, : cache.capacity]

    branches = [lambda row, kind=kind: whole(kind, row) for kind in range(len(cache.stacks))]
    return jax.lax.switch(kind_of, branches, row)


def slots(cache: KVCache, kind: int) -> int:
    """Token rows of one stack: the capacity in whole groups."""
    spec, stack = cache.layout.kinds[kind], cache.stacks[kind]
    key, leaf = next(iter(stack.k.items()))
    return leaf.shape[3] * tokens_per_row(spec.k, key, cache.head_dim)
