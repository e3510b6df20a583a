"""Sums over the groups of a tile, inside of a kernel, and the groups whose keyframes are at hand.

Keyframes are read for several groups at once, a *unit* of the context. Letters: r query rows,
n tokens of a tile, g groups of a unit, w width of a plane.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deltakv_pallas.side import Side


def product(a: Array, b: Array, axes: tuple[int, int], operand: Any, total: Any = None) -> Array:
    """The product of two matrices along an axis of each, summed in float32 or in `total`."""
    a, b = (x if x.dtype == operand else x.astype(operand) for x in (a, b))
    return jax.lax.dot_general(
        a.T if axes[0] == 0 else a,
        b,
        (((1,), (axes[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if operand == jnp.float32 else None,
        preferred_element_type=total or jnp.float32,
    )


def exact_product(a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """The product of float16 numbers a with float32 numbers b, of which 22 bits count.

    Halves are multiplied: b is a float16 and a float16 remainder.
    """
    high = b.astype(jnp.float16)
    low = b - high.astype(jnp.float32)
    return product(a, high, axes, jnp.float16) + product(a, low, axes, jnp.float16)


def inner(a: Array, b: Array, operand: Any) -> Array:
    """The products of the rows of a [g, w] and of b [r, w]: [g, r].

    One row is multiplied and summed: a product with less than a matrix unit's rows takes as many
    registers as a whole one.
    """
    if len(a) == 1:
        return jnp.sum(a * b.astype(jnp.float32), axis=1)[None]
    return product(a, b, (1, 1), operand)


def places(side: Side, count: int, unit: Array, start: Array) -> Array:
    """Which tokens are of which group: bool [g, n], or [g, 1] where the tile is of one group.

    Args:
      side: of the cache.
      count: groups of a unit.
      unit: the unit's first token.
      start: the tile's first token.
    """
    tokens = start + jnp.arange(1 if side.group == side.tile else side.tile)
    interval = side.format.interval
    return jnp.arange(count)[:, None] == (tokens // interval - unit // interval)[None]


def spread(x: Array, at: Array) -> Array:
    """[g, r] to [n, r], or to [1, r]: each group's number at each of its tokens."""
    if at.shape[1] == 1:
        return jnp.sum(jnp.where(at, x, 0.0), axis=0)[None]
    return exact_product(at.astype(jnp.float16), x, (0, 0))


def collect(p: Array, at: Array) -> Array:
    """[n, r] to [g, r]: the sum over each group's tokens."""
    if at.shape[1] == 1:
        return jnp.where(at, jnp.sum(p, axis=0)[None], 0.0)
    return exact_product(at.astype(jnp.float16), p, (1, 0))


def running(x: Array, side: Side) -> Array:
    """Running sums of x [n, r] inside of each group."""
    if side.group == side.tile:
        return jnp.cumsum(x, axis=0)
    grouped = x.reshape(-1, side.group, x.shape[1])
    return jnp.cumsum(grouped, axis=1).reshape(x.shape)


def later(p: Array, side: Side) -> Array:
    """Reversed running sums of p [n, r] inside of each group."""
    grouped = p.reshape(-1, side.group, p.shape[1])
    totals = jnp.broadcast_to(jnp.sum(grouped, axis=1, keepdims=True), grouped.shape)
    return totals.reshape(p.shape) - running(p, side) + p


def running_values(terms: Array, side: Side, total: Any) -> Array:
    """Running sums of the terms [n, w] inside of each group: [w, n], by a triangle of ones."""
    token = jnp.arange(side.tile)
    group = token // side.group
    earlier = (token[:, None] <= token) & (group[:, None] == group)
    return product(terms, earlier.astype(terms.dtype), (0, 0), terms.dtype, total)
