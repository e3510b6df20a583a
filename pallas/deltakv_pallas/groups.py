"""Sums over the groups of a tile, inside of a kernel.

Where the tile is one group they keep to two axes, as every reshape of a kernel goes through memory.
The products are of few numbers, for which a matrix unit is too wide.

Letters: r query rows, n tokens of a tile, g groups of a tile, w width of a plane.
"""

import jax.numpy as jnp
from jaxtyping import Array

from deltakv_pallas.side import Side


def totals(x: Array, side: Side) -> Array:
    """Sums of x [r, n] over each group: [r, g]."""
    if side.group == side.tile:
        return jnp.sum(x, axis=1)[:, None]
    return jnp.sum(x.reshape(len(x), -1, side.group), axis=2)


def running(x: Array, side: Side) -> Array:
    """Running sums of x [r, n] inside of each group."""
    if side.group == side.tile:
        return jnp.cumsum(x, axis=1)
    return jnp.cumsum(x.reshape(len(x), -1, side.group), axis=2).reshape(x.shape)


def spread(x: Array, side: Side) -> Array:
    """[r, g] to [r, n]: each group's number at each of its tokens."""
    if side.group == side.tile:
        return jnp.broadcast_to(x, (len(x), side.tile))
    return jnp.broadcast_to(x[:, :, None], (*x.shape, side.group)).reshape(len(x), -1)


def inner(a: Array, b: Array) -> Array:
    """The product of a [r, w] and b [g, w] along w: [r, g]."""
    if len(b) == 1:
        return jnp.sum(a * b, axis=1)[:, None]
    return jnp.sum(a[:, None] * b[None], axis=2)


def outer(a: Array, b: Array) -> Array:
    """The product of a [r, g] and b [g, w] along g: [r, w]."""
    if len(b) == 1:
        return a * b
    return jnp.sum(a[:, :, None] * b[None], axis=1)
