"""Products with dense matrices, multiplied in the dtype of the weights and summed in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from deltakv_jax.linear.tiles import dot, fill, tile_rows
from deltakv_jax.typed import typed

_TILE = 1 << 20  # weights in a tile: 4 MiB in float32, the best of 32 Ki to 2 Mi on two cores
_MANY_ROWS = 32  # of x, from which a product is bound by arithmetic and not by reading


@typed
def dense_product(
    weights: Float[Array, "l m n"], x: Float[Array, "b n"], row: jax.typing.ArrayLike
) -> Float32[Array, "b m"]:
    """Returns x @ W.T, W being the matrix `row` of a stack."""
    multiply = _tile_by_tile if len(x) < _MANY_ROWS else _whole
    return multiply(weights, x.astype(weights.dtype), row)


def _whole(weights: Array, x: Array, row: jax.typing.ArrayLike) -> Array:
    return dot(x, jax.lax.dynamic_index_in_dim(weights, row, keepdims=False))


def _tile_by_tile(weights: Array, x: Array, row: jax.typing.ArrayLike) -> Array:
    """The product with a few rows of x, which takes as long as reading the weights once.

    A loop of at least two trips. Where the product stands by itself, XLA:CPU either copies the
    matrix out of its stack, or fuses whatever computes x into it, to be done again for each
    output: either way half the speed.
    """
    _, size, width = weights.shape
    rows = tile_rows(size, _TILE // width)

    def tile(start: Array) -> Array:
        return dot(x, jax.lax.dynamic_slice(weights, (row, start, 0), (1, rows, width))[0])

    return fill(jnp.zeros((len(x), size), jnp.float32), 1, rows, tile)
