"""What one program of the decode kernel does: a running softmax over its tiles of the context.

Letters: r query rows, n tokens of a tile, g groups of a tile, w width of a plane.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.codec import Planes
from deltakv_pallas.groups import inner, outer, running, spread, totals
from deltakv_pallas.lowering import program_id
from deltakv_pallas.side import Side, Tile

_NEVER = -1e30
"""A score below all others that can be subtracted from itself."""

_LIFT = 8 * math.log(2)
"""Added to every exponent: float16 then holds weights down to 2^-32 of the largest."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the work is cut into programs; static.

    Attributes:
      k, v: the sides.
      slots: tokens that the leaves have rows for.
      run: tiles that only one program may read, as their chains go on from each other.
      queries: query tokens of a block.
      rows: query rows of a block, padded.
      splits: of the context.
      matrix_units: whether the device has them.
    """

    k: Side
    v: Side
    slots: int
    run: int
    queries: int
    rows: int
    splits: int
    matrix_units: bool

    @property
    def tile(self) -> int:
        """Tokens that are read at once."""
        return self.k.tile


class Inputs(NamedTuple):
    """What a program reads, as references.

    Attributes:
      row: int32 [1], the layer's row in its stack.
      limits: int32 [b, c, r], the last token that each query row sees.
      q: planes [b, k, c, r, w] of the scaled queries.
      k, v: the leaves of each side.
      k_columns, v_columns: int32 planes [w], see `Side.columns`.
    """

    row: Any
    limits: Any
    q: Any
    k: Any
    v: Any
    k_columns: Any
    v_columns: Any


class Outputs(NamedTuple):
    """What a program writes: the softmax of its split, float32.

    Attributes:
      acc: planes [b, k, c, s, r, w].
      m, l: [b, k, c, s, r].
    """

    acc: Any
    m: Any
    l: Any


class _State(NamedTuple):
    """The running softmax, and what a chain goes on from where groups are longer than tiles.

    Attributes:
      m: float32 [r], largest score yet.
      l: float32 [r], sum of the weights.
      acc: float32 planes [r, w], weighted sum of the values.
      score: float32 [r], of the last token read.
      value: float32 planes [1, w], the last token's.
    """

    m: Array
    l: Array
    acc: Planes
    score: Array
    value: Planes


def program(cut: Cut, inputs: Inputs, outputs: Outputs) -> None:
    """One split of the context for one block of query rows of one kv head."""
    b, split = program_id(0), program_id(2)
    kv_head, block = jnp.divmod(program_id(1), inputs.limits.shape[1])
    limits = inputs.limits[b, block]
    where = (inputs.row[0], b, kv_head)
    step = functools.partial(_step, cut, inputs, where, block, limits)
    state = jax.lax.fori_loop(*_tiles(cut, limits, split), step, _empty(cut))
    for ref, plane in zip(outputs.acc, state.acc, strict=True):
        ref[b, kv_head, block, split] = plane
    outputs.m[b, kv_head, block, split] = state.m
    outputs.l[b, kv_head, block, split] = state.l


def _tiles(cut: Cut, limits: Array, split: Array) -> tuple[Array, Array]:
    """The first tile of a split and the one behind its last; all splits are equally long."""
    tiles = jnp.max(limits) // cut.tile + 1
    runs = (tiles + cut.run - 1) // cut.run
    each = (runs + cut.splits - 1) // cut.splits * cut.run
    return split * each, jnp.minimum((split + 1) * each, tiles)


def _empty(cut: Cut) -> _State:
    row = jnp.zeros(cut.rows)
    acc = tuple(jnp.zeros((cut.rows, width)) for width in cut.v.widths())
    value = tuple(jnp.zeros((1, width)) for width in cut.v.widths() if cut.v.carried)
    return _State(row + _NEVER, row, acc, row, value)


def _step(
    cut: Cut,
    inputs: Inputs,
    where: tuple[Any, ...],
    block: Array,
    limits: Array,
    tile: Array,
    state: _State,
) -> _State:
    """The state after one more tile."""
    # The last tile may overlap the one before it: what that one has counted is left out.
    start = jnp.minimum(tile * cut.tile, cut.slots - cut.tile)
    at = start + jnp.arange(cut.tile)
    _, b, kv_head = where
    # An index that a compiler must compute in every turn: the queries are read again from a cache
    # that is near and do not take half of the registers of the loop.
    again = block + jnp.minimum(tile, 0)
    q = tuple(ref[b, kv_head, again] for ref in inputs.q)
    keys = cut.k.read(inputs.k, inputs.k_columns, where, start)
    scores, score = _scores(keys, q, state.score)
    seen = (at[None] <= limits[:, None]) & (at >= tile * cut.tile)[None]
    scores = jnp.where(seen, scores, -jnp.inf)
    m = jnp.maximum(state.m, jnp.max(scores, axis=1))
    shrink, p = jnp.exp(state.m - m), jnp.exp(scores - (m - _LIFT)[:, None])
    values = cut.v.read(inputs.v, inputs.v_columns, where, start)
    mixed, value = _mix(cut, values, p, state.value)
    acc = tuple(old * shrink[:, None] + new for old, new in zip(state.acc, mixed, strict=True))
    return _State(m, state.l * shrink + jnp.sum(p, axis=1), acc, score, value)


def _scores(keys: Tile, q: Planes, before: Array) -> tuple[Array, Array]:
    """q.r_n [r, n], and that of the tile's last token if the next tile goes on from it."""
    side = keys.side
    planes = zip(q, keys.terms, strict=True)
    products = _sum(_dot(a, term, 1, side.format.operand) for a, term in planes)
    if not side.format.chained:
        return products, before
    planes = zip(q, keys.bases, strict=True)
    first = _sum(inner(a, base) for a, base in planes)
    if side.carried:
        first = jnp.where(keys.opens, first, before[:, None])
        before = first[:, 0] + jnp.sum(products, axis=1)
    return spread(first, side) + running(products, side), before


def _mix(cut: Cut, values: Tile, p: Array, before: Planes) -> tuple[Planes, Planes]:
    """sum_n p_n r_n in planes [r, w], and the last value if the next tile goes on from it."""
    side = values.side
    if not side.format.chained:
        return tuple(_dot(p, term, 0, side.format.operand) for term in values.terms), before
    bases = values.bases
    if side.carried:
        bases = tuple(jnp.where(values.opens, *pair) for pair in zip(bases, before, strict=True))
        sums = (jnp.sum(term, axis=0)[None] for term in values.terms)
        before = tuple(base + add for base, add in zip(bases, sums, strict=True))
    # (sum of p) base + the terms weighted with the reversed running sum of p.
    total = totals(p, side)
    weights = spread(total, side) - running(p, side) + p
    mixed = (_exact(weights, term, cut.matrix_units) for term in values.terms)
    return tuple(outer(total, base) + m for base, m in zip(bases, mixed, strict=True)), before


def _exact(a: Array, b: Array, matrix_units: bool) -> Array:
    """The product of a [r, n] and b [n, w] to 22 bits: a chain's large weights cancel in the sum.

    A matrix unit multiplies halves: each number is a float16 and a float16 remainder, and the
    product of the remainders is left out.
    """
    if not matrix_units:
        return _dot(a, b, 0, jnp.float32)
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    products = ((a_high, b_high), (a_low, b_high), (a_high, b_low))
    return _sum(_dot(left, right, 0, jnp.float16) for left, right in products)


def _halves(x: Array) -> tuple[Array, Array]:
    high = x.astype(jnp.float16)
    return high, x - high.astype(jnp.float32)


def _dot(a: Array, b: Array, axis: int, operand: Any) -> Array:
    """The product along a's last axis and an axis of b, multiplied in `operand`."""
    return jax.lax.dot_general(
        a.astype(operand),
        b.astype(operand),
        (((1,), (axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if operand == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _sum(planes: Iterable[Array]) -> Array:
    first, *rest = planes
    return sum(rest, first)
