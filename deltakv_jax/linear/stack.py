"""The weights of one role (say, the query projection) in every layer of a model.

A file may hold them in several types, layer by layer, so they are stacked per *kind*; the layer's
index, which may be traced, picks kind and row. A scan over layers then compiles one body whose
size grows with the number of kinds and never with depth.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from deltakv_jax.typed import typed

_TILE = 1 << 20  # weights in a tile: 4 MiB in float32, the best of 32 Ki to 2 Mi on two cores
_MANY_ROWS = 32  # of x, from which a product is bound by arithmetic and not by reading


class Stack(nnx.Module):
    """One matrix W per layer, y = x @ W.T, as Hugging Face has them.

    Attributes:
      kinds: one array [layers of this kind, out, in] per kind of weight.
      layout: static; kind and row of each layer, None where one kind holds all layers in order.
    """

    def __init__(self, kinds: Sequence[jax.Array], layout: Sequence[tuple[int, int]] | None = None):
        """Takes one kind's stack in order of the layers, or several and their `layout`."""
        self.kinds = nnx.List([nnx.Param(kind) for kind in kinds])
        self.layout = None if layout is None else tuple(layout)

    @typed
    def product(
        self, x: Float[Array, "*lead n"], layer: int | Int[Array, ""]
    ) -> Float32[Array, "*lead m"]:
        """Returns x @ W.T of one layer, multiplied in W's dtype and summed in float32."""
        branches = [functools.partial(_dense, kind[...]) for kind in self.kinds]
        if self.layout is None:
            return branches[0](x, layer)
        kinds, rows = jnp.asarray(self.layout, jnp.int32).T
        return jax.lax.switch(kinds[layer], branches, x, rows[layer])


@typed
def product(weight: Float[Array, "m n"], x: Float[Array, "*lead n"]) -> Float32[Array, "*lead m"]:
    """Returns x @ W.T of a single matrix, multiplied in W's dtype and summed in float32."""
    return _dense(weight[None], x, 0)


def _dense(weights: jax.Array, x: jax.Array, row: jax.typing.ArrayLike) -> jax.Array:
    flat = x.reshape(-1, x.shape[-1]).astype(weights.dtype)
    multiply = _tile_by_tile if flat.shape[0] < _MANY_ROWS else _whole
    return multiply(weights, flat, row).reshape(*x.shape[:-1], -1)


def _whole(weights: jax.Array, x: jax.Array, row: jax.typing.ArrayLike) -> jax.Array:
    return _dot(x, jax.lax.dynamic_index_in_dim(weights, row, keepdims=False))


def _tile_by_tile(weights: jax.Array, x: jax.Array, row: jax.typing.ArrayLike) -> jax.Array:
    """The product with a few rows of x, which takes as long as reading the weights once.

    A loop of at least two trips. Where the product stands by itself, XLA:CPU either copies the
    matrix out of its stack, or fuses whatever computes x into it, to be done again for each
    output: either way half the speed. The last tile may overlap the one before it.
    """
    _, size, width = weights.shape
    tile = max(1, min(_TILE // width, -(-size // 2)))

    def one(i: jax.Array, y: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice(weights, (row, i * tile, 0), (1, tile, width))[0]
        return jax.lax.dynamic_update_slice(y, _dot(x, part), (0, i * tile))

    return jax.lax.fori_loop(0, -(-size // tile), one, jnp.zeros((len(x), size), jnp.float32))


def _dot(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns x @ W.T summed in float32; "highest", as a GPU would otherwise round to TF32."""
    return jnp.einsum(
        "bn,mn->bm", x, weight, precision="highest", preferred_element_type=jnp.float32
    )
