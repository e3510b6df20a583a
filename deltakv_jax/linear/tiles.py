"""Loops over tiles of rows, which all products with weights share."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

Y = TypeVar("Y")


def tile_rows(rows: int, most: int) -> int:
    """Rows of each tile: at most `most`, of equal tiles, of which there are two or more.

    A loop with a single trip would be no loop to a compiler.
    """
    tiles = max(2, -(-rows // max(most, 1)))
    return -(-rows // tiles)


def fill(y: Y, axis: int, rows: int, tile: Callable[[Array], Y]) -> Y:
    """Returns y, an array or several, with tile(start) written from each start on.

    The last tile may overlap the one before it.

    Args:
      y: as long along `axis` as all tiles together.
      axis: the axis of the tiles.
      rows: length of each tile along `axis`.
      tile: makes the tile that begins at a row.
    """
    size = jax.tree.leaves(y)[0].shape[axis]

    def one(i: Array, y: Y) -> Y:
        start = jnp.minimum(i * rows, size - rows)
        write = lambda y, part: jax.lax.dynamic_update_slice_in_dim(y, part, start, axis)
        return jax.tree.map(write, y, tile(start))

    return jax.lax.fori_loop(0, -(-size // rows), one, y)


def dot(x: Array, weight: Array) -> Array:
    """Returns x @ W.T summed in float32; "highest", as a GPU would otherwise round to TF32."""
    return jnp.einsum(
        "bn,mn->bm", x, weight, precision="highest", preferred_element_type=jnp.float32
    )
