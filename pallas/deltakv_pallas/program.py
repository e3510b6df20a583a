"""What one program of the decode kernel does: a running softmax over its tiles of the context.

Tokens are the rows of every product: with few queries, a matrix unit then wastes least of itself.

Letters: r query rows, n tokens of a tile, g groups of a unit, p planes of a side, w width of one.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.codec import Planes
from deltakv_pallas import groups
from deltakv_pallas.groups import exact_product, product
from deltakv_pallas.lowering import program_id
from deltakv_pallas.side import Side

NEVER = -1e30
"""A score below all others that can be subtracted from itself."""

LIFT = 8
"""Added to every exponent of 2: float16 then holds weights down to 2^-32 of the largest."""


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
      sinks: the first tokens, which are read elsewhere.
      groups: of a unit, whose keyframes are read at once.
      matrix_units: whether the device has them.
      half_sums: whether they can sum in float16.
    """

    k: Side
    v: Side
    slots: int
    run: int
    queries: int
    rows: int
    splits: int
    sinks: int
    groups: int
    matrix_units: bool
    half_sums: bool

    @property
    def tile(self) -> int:
        """Tokens that are read at once."""
        return self.k.tile

    @property
    def unit(self) -> int:
        """Tiles of a unit: all that each side's keyframes at hand are of."""
        chained = [side.format.interval for side in (self.k, self.v) if side.format.chained]
        return self.groups * min(chained, default=self.tile) // self.tile


class Inputs(NamedTuple):
    """What a program reads, as references.

    Attributes:
      row: int32 [1], the layer's row in its stack.
      limits: int32 [b, c, r], the last token that each query row sees.
      q: [b, k, c, p, r, w], planes of the queries, scaled for scores in powers of 2.
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
      acc: [b, k, c, s, p, w, r].
      m, l: [b, k, c, s, r].
    """

    acc: Any
    m: Any
    l: Any


class _State(NamedTuple):
    """The running softmax, and what a chain goes on from.

    Attributes:
      m: float32 [r], largest score yet, in powers of 2.
      l: float32 [r], sum of the weights.
      acc: float32 planes [w, r], weighted sum of the values.
      totals: float32 [g, r], sum of the weights of each group of the unit whose keyframe is still
        to be added; empty without chains.
      score: float32 [r], of the last token read, less that of its keyframe, where groups are
        longer than tiles.
      value: float32 planes [w], the last token's, likewise.
    """

    m: Array
    l: Array
    acc: Planes
    totals: Planes
    score: Planes
    value: Planes


class _Program(NamedTuple):
    """What stays the same in all tiles of a program.

    Attributes:
      cut: static.
      inputs: references.
      where: layer, sequence and kv head.
      block: of query rows.
      limits: int32 [r].
      queries: planes [r, w], or None to read them again in every tile.
    """

    cut: Cut
    inputs: Inputs
    where: tuple[Any, ...]
    block: Array
    limits: Array
    queries: Planes | None


def program(cut: Cut, inputs: Inputs, outputs: Outputs) -> None:
    """One split of the context for one block of query rows of one kv head."""
    b, split = program_id(0), program_id(2)
    kv_head, block = jnp.divmod(program_id(1), inputs.limits.shape[1])
    limits, where = inputs.limits[b, block], (inputs.row[0], b, kv_head)
    this = _Program(cut, inputs, where, block, limits, None)
    if cut.matrix_units:
        this = this._replace(queries=_load_queries(this, block))
    state = _read(this, *_tiles(cut, limits, split))
    for p, plane in enumerate(state.acc):
        outputs.acc[b, kv_head, block, split, p] = plane
    outputs.m[b, kv_head, block, split] = state.m
    outputs.l[b, kv_head, block, split] = state.l


def _tiles(cut: Cut, limits: Array, split: Array) -> tuple[Array, Array]:
    """The first tile of a split and the one behind its last; all splits are equally long."""
    tiles = jnp.max(limits) // cut.tile + 1
    runs = (tiles + cut.run - 1) // cut.run
    each = (runs + cut.splits - 1) // cut.splits * cut.run
    return split * each, jnp.minimum((split + 1) * each, tiles)


def _read(this: _Program, first: Array, last: Array) -> _State:
    """The state after these tiles: unit by unit where there are chains."""
    cut, empty = this.cut, _empty(this.cut)
    if not (cut.k.format.chained or cut.v.format.chained):
        step = functools.partial(_step, this, jnp.int32(0), None)
        return jax.lax.fori_loop(first, last, step, empty)

    def unit(number: Array, state: _State) -> _State:
        begin = number * cut.unit
        scores = _base_scores(this, begin * cut.tile)
        step = functools.partial(_step, this, begin * cut.tile, scores)
        bounds = jnp.maximum(begin, first), jnp.minimum(begin + cut.unit, last)
        return _add_bases(this, begin * cut.tile, jax.lax.fori_loop(*bounds, step, state))

    return jax.lax.fori_loop(first // cut.unit, (last + cut.unit - 1) // cut.unit, unit, empty)


def _empty(cut: Cut) -> _State:
    row, widths = jnp.zeros(cut.rows), cut.v.widths()
    acc = tuple(jnp.zeros((width, cut.rows)) for width in widths)
    totals = (jnp.zeros((cut.groups, cut.rows)),) if cut.v.format.chained else ()
    score = (row,) if cut.k.carried else ()
    value = tuple(jnp.zeros(width) for width in widths) if cut.v.carried else ()
    return _State(row + NEVER, row, acc, totals, score, value)


def _queries(this: _Program, tile: Array) -> Planes:
    if this.queries is not None:
        return this.queries
    # An index that a compiler must compute in every turn: the queries are read again from a cache
    # that is near and do not take half of the registers of the loop.
    return _load_queries(this, this.block + jnp.minimum(tile, 0))


def _load_queries(this: _Program, block: Array) -> Planes:
    ref, (_, b, kv_head) = this.inputs.q, this.where
    return tuple(ref[b, kv_head, block, p] for p in range(ref.shape[3]))


def _base_scores(this: _Program, unit: Array) -> Array | None:
    """[g, r]: what the scores of each group begin with."""
    side = this.cut.k
    if not side.format.chained:
        return None
    numbers = unit // side.format.interval + jnp.arange(this.cut.groups)
    bases = side.bases(this.inputs.k, this.inputs.k_columns, this.where, numbers)
    planes = zip(bases, _queries(this, unit), strict=True)
    return _sum(groups.inner(base, q, side.format.operand) for base, q in planes)


def _add_bases(this: _Program, unit: Array, state: _State) -> _State:
    """The state with the keyframes of a unit's groups added, each by its group's weights."""
    side = this.cut.v
    if not side.format.chained:
        return state
    numbers = unit // side.format.interval + jnp.arange(this.cut.groups)
    bases = side.bases(this.inputs.v, this.inputs.v_columns, this.where, numbers)
    [totals] = state.totals
    add = lambda base: exact_product(base, totals, (0, 0))
    acc = tuple(old + add(base) for old, base in zip(state.acc, bases, strict=True))
    return state._replace(acc=acc, totals=(jnp.zeros_like(totals),))


def _step(
    this: _Program, unit: Array, base_scores: Array | None, tile: Array, state: _State
) -> _State:
    """The state after one more tile."""
    cut = this.cut
    # The last tile may overlap the one before it: what that one has counted is left out.
    start = jnp.minimum(tile * cut.tile, cut.slots - cut.tile)
    at = start + jnp.arange(cut.tile)
    scores, score = _scores(this, unit, base_scores, tile, start, state.score)
    seen = (at[:, None] <= this.limits[None]) & (at >= jnp.maximum(tile * cut.tile, cut.sinks))[
        :, None
    ]
    scores = jnp.where(seen, scores, -jnp.inf)
    m = jnp.maximum(state.m, jnp.max(scores, axis=0))
    shrink, p = jnp.exp2(state.m - m), jnp.exp2(scores - (m - LIFT)[None])
    state = state._replace(m=m, l=state.l * shrink + jnp.sum(p, axis=0), score=score)
    return _mix(this, unit, start, p, shrink, state)


def _scores(
    this: _Program,
    unit: Array,
    base_scores: Array | None,
    tile: Array,
    start: Array,
    before: Planes,
) -> tuple[Array, Planes]:
    """q.r_n [n, r], and that of the tile's last token if the next tile goes on from it."""
    side = this.cut.k
    terms = side.terms(this.inputs.k, this.where, start)
    planes = zip(terms, _queries(this, tile), strict=True)
    products = _sum(product(term, q, (1, 1), side.format.operand) for term, q in planes)
    if base_scores is None:
        return products, ()
    at = groups.places(side, this.cut.groups, unit, start)
    first = groups.spread(base_scores, at)
    if side.carried:
        kept = jnp.where(start % side.format.interval == 0, 0.0, before[0])
        first, before = first + kept[None], (kept + jnp.sum(products, axis=0),)
    return first + groups.running(products, side), before


def _mix(
    this: _Program, unit: Array, start: Array, p: Array, shrink: Array, state: _State
) -> _State:
    """The state with the values of a tile added, by the weights p [n, r]."""
    side, operand = this.cut.v, this.cut.v.format.operand
    terms = side.terms(this.inputs.v, this.where, start)
    old = [plane * shrink[None] for plane in state.acc]
    if not side.format.chained:
        new = (a + product(term, p, (0, 0), operand) for a, term in zip(old, terms, strict=True))
        return state._replace(acc=tuple(new))
    at = groups.places(side, this.cut.groups, unit, start)
    totals = state.totals[0] * shrink[None] + groups.collect(p, at)
    acc = tuple(a + _chained(this.cut, term, p) for a, term in zip(old, terms, strict=True))
    state = state._replace(acc=acc, totals=(totals,))
    return _carry(side, start, terms, p, state) if side.carried else state


def _chained(cut: Cut, terms: Array, p: Array) -> Array:
    """sum_n p_n (running sum of the terms up to n): [w, r].

    Either the terms are summed, by a matrix unit which does so at next to no cost, or the weights
    are, from the end: that takes fewer products, but large weights whose terms all but cancel.
    """
    side = cut.v
    if not cut.matrix_units:
        return exact_product(terms, groups.later(p, side), (0, 0))
    total = jnp.float16 if cut.half_sums else jnp.float32
    values = groups.running_values(terms, side, total)
    return product(values, p, (1, 0), side.format.operand)


def _carry(side: Side, start: Array, terms: Planes, p: Array, state: _State) -> _State:
    """The state with what the tiles before this one of the same group add to its values."""
    opens = start % side.format.interval == 0
    kept = [jnp.where(opens, 0.0, value) for value in state.value]
    total = jnp.sum(p, axis=0)[None]
    acc = (a + value[:, None] * total for a, value in zip(state.acc, kept, strict=True))
    sums = (jnp.sum(term.astype(jnp.float32), axis=0) for term in terms)
    value = (v + add for v, add in zip(kept, sums, strict=True))
    return state._replace(acc=tuple(acc), value=tuple(value))


def _sum(planes: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, planes)
