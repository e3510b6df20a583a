"""Attention that reads the packed cache tile by tile, in plain JAX for every machine.

The softmax is accumulated over spans of tokens (FlashAttention, arXiv 2205.14135, algorithm 1), so
memory is linear in the context; a span is unpacked tile by tile. A chain of differences is not
undone: with r_t = base + e_1 + … + e_t inside a group, q.r_t is q.base and the running sum of the
scalars q.e_j, and sum_t p_t r_t weights each e_j with the reversed running sum of p. Only where
there are more query rows than values in a head is it cheaper to sum the tile itself, once for all
rows.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from deltakv_jax.attention.centre import centre_scores, rotated_mean
from deltakv_jax.cache import ALONE, KVCache, Near, Step, near_in, read_tile, slots
from deltakv_jax.cache.state import Stack, tokens_per_row
from deltakv_jax.codec import Format, KVSpec, Leaves, Planes
from deltakv_jax.codec.hadamard import rotate
from deltakv_jax.typed import typed

_NEVER = -1e30  # a score below all others that can be subtracted from itself
_TILES = 4  # of a span, with few rows: enough scores to share among threads
_TILE = 512  # tokens, where there are many rows
_LONGEST_TILE = 2048  # tokens, where there are few
_NEAR_QUERIES = 64  # of a block that reads refined tokens
_TILE_VALUES = 2**21  # of K, in all heads, with few rows; unpacked, 8 MiB: in a processor's cache


@typed
def attend_tiled(
    q: Float32[Array, "b t h d"],
    positions: Int32[Array, "b t"],
    cache: KVCache,
    layer: Int32[Array, ""] | int,
    step: Step = ALONE,
) -> Float32[Array, "b t h d"]:
    """What `attend_reference` computes, reading the packed form tile by tile.

    Args:
      q: queries after RoPE.
      positions: of each query; its own token is already written.
      cache: the cache.
      layer: the layer to read.
      step: what else is known of the step.
    """
    kind_of, row = cache.layout.find(layer)
    branches = [partial(_attend_kind, kind, cache, step) for kind in range(len(cache.stacks))]
    return jax.lax.switch(kind_of, branches, row, q, positions)


def bytes_read(cache: KVCache, kind: int, tokens: int) -> int:
    """Bytes of K and V that a layer of this kind must read for so many tokens of each sequence."""
    spec, stack = cache.layout.kinds[kind], cache.stacks[kind]

    def rows_read(side: Format, key: str, leaf: Array) -> int:
        _, batch, kv_heads, _, width = leaf.shape
        rows = -(-tokens // tokens_per_row(side, key, cache.head_dim))
        return batch * kv_heads * rows * width * leaf.dtype.itemsize

    sides = (spec.k, stack.k), (spec.v, stack.v)
    packed = sum(rows_read(side, *item) for side, leaves in sides for item in leaves.items())
    layers = cache.layout.kind_of.count(kind)
    beside = jax.tree.leaves((stack.near, stack.centre))
    return packed + sum(leaf.size * leaf.dtype.itemsize for leaf in beside) // layers


@dataclasses.dataclass(frozen=True)
class _Span:
    """Tokens whose scores are softmaxed at once, of one layer.

    Attributes:
      read: (first token, count) -> packed rows (`Stack`), both in whole groups.
      size: tokens of the span; whole tiles.
      tile: tokens of a tile.
      bounds: the first tile that is needed and the one behind the last; traced.
    """

    read: Callable[[Array | int, int], Stack]
    size: int
    tile: int
    bounds: tuple[Array, Array]

    def fold(self, add: Callable[[Array | int, Stack, Any], Any], carry: Any) -> Any:
        """The carry after `add(first token, leaves, carry)` of every tile that is needed."""
        if self.size == self.tile:
            return add(0, self.read(0, self.tile), carry)

        def step(tile: Array, carry: Any) -> Any:
            return add(tile * self.tile, self.read(tile * self.tile, self.tile), carry)

        return jax.lax.fori_loop(*self.bounds, step, carry)

    def whole(self) -> Stack:
        """The packed rows of all its tokens."""
        return self.read(0, self.size)


def _attend_kind(
    kind: int, cache: KVCache, step: Step, row: Array, q: Array, positions: Array
) -> Array:
    spec, total = cache.layout.kinds[kind], slots(cache, kind)
    _, t, h, d = q.shape
    leaf = next(iter(cache.stacks[kind].k.values()))
    plain = _to_rows(q, leaf)
    rows = _to_rows(rotate(q), leaf) if spec.k.rotate else plain
    tile, size = _cut(spec, rows, total)
    heads = rows.shape[2] // t
    limits = jnp.tile(positions, (1, heads))[:, None]
    near = near_in(cache, kind, row, positions, step)
    window, sinks = (near.window, near.sinks) if near else (0, 0)
    live = jnp.max(positions) + 1 - window

    def fold(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        begin, start = index * size, jnp.minimum(index * size, total - size)
        bounds = (begin - start) // tile, -(-jnp.minimum(live - start, size) // tile)
        read = lambda first, count: read_tile(cache, kind, row, start + first, count)
        span, at = _Span(read, size, tile, bounds), start + jnp.arange(size)
        # The last span may overlap the one before it: what that one has counted is left out.
        seen = (at <= limits[..., None] - window) & (at >= jnp.maximum(begin, sinks))
        scores = _scores(spec.k, rows, span)
        if step.centre is not None:
            scores = scores + centre_scores(plain, step.centre, start, size)
        return _accumulate(carry, scores, seen, partial(_mix, spec.v, d, span))

    spans = jnp.minimum(-(-live // size), -(-total // size))
    empty = jnp.full(rows.shape[:3], _NEVER), jnp.zeros(rows.shape[:3]), jnp.zeros_like(rows)
    carry = jax.lax.fori_loop(0, spans, fold, empty)
    if near:
        carry = _accumulate_near(carry, spec, near, step, rows, plain, positions)
    _, l, acc = carry
    out = _from_rows(acc / l[..., None], t, h)
    return rotate(out) if spec.v.rotate else out


def _accumulate_near(
    carry: tuple[Array, Array, Array],
    spec: KVSpec,
    near: Near,
    step: Step,
    rows: Array,
    plain: Array,
    positions: Array,
) -> tuple[Array, Array, Array]:
    """The running softmax with the tokens that are read refined, some queries at a time.

    No query sees more of them than its window, and many together see all.
    """
    t, size = positions.shape[1], min(_NEAR_QUERIES, positions.shape[1])
    few = _few(rows.shape[2] // t * size, rows.shape[3])
    split = spec.k.split if few else lambda rows: (rows,)
    whole = {"k": (spec.k.join(near.k),), "v": (spec.v.join(near.v),)}
    near = near if few else dataclasses.replace(near, **whole)

    def block(index: Array, done: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start = jnp.minimum(index * size, t - size)
        part, at = near.of_queries(start, size), positions[:, start + jnp.arange(size)]
        take, put = partial(_take_queries, t, start, size), partial(_put_queries, t, start)
        scores = _dot_planes(split(take(rows)), part.k)
        if step.centre is not None:
            means = rotated_mean(step.centre, part.tokens)
            scores = scores + _dot("bkrd,bksd->bkrs", take(plain), means)
        seen = jnp.tile(part.seen(at), (1, rows.shape[2] // t, 1))[:, None]
        mixed = lambda p: _mix_planes(p, part.v)
        mix = lambda p: spec.v.join(mixed(p)) if few else mixed(p)[0]
        return jax.tree.map(put, done, _accumulate(jax.tree.map(take, carry), scores, seen, mix))

    return jax.lax.fori_loop(0, -(-t // size), block, carry)


def _take_queries(t: int, start: Array, size: int, x: Array) -> Array:
    """The rows [b, k, g * size, …] of some query tokens, of rows [b, k, g * t, …]."""
    grouped = x.reshape(*x.shape[:2], -1, t, *x.shape[3:])
    taken = jax.lax.dynamic_slice_in_dim(grouped, start, size, axis=3)
    return taken.reshape(*x.shape[:2], -1, *x.shape[3:])


def _put_queries(t: int, start: Array, x: Array, new: Array) -> Array:
    """Rows with those that `_take_queries` took replaced."""
    grouped = x.reshape(*x.shape[:2], -1, t, *x.shape[3:])
    taken = new.reshape(*grouped.shape[:3], -1, *x.shape[3:])
    return jax.lax.dynamic_update_slice_in_dim(grouped, taken, start, axis=3).reshape(x.shape)


def _cut(spec: KVSpec, rows: Array, total: int) -> tuple[int, int]:
    """Tokens of a tile and of a span, in whole groups of K and of V."""
    batch, kv_heads, count, d = rows.shape
    few = _few(count, d)
    fitting = min(_LONGEST_TILE, _TILE_VALUES // (batch * kv_heads * d))
    period = math.lcm(spec.k.interval, spec.v.interval)
    tile = min(max(1, (fitting if few else _TILE) // period) * period, total)
    return tile, min(_TILES if few else 1, total // tile) * tile


def _to_rows(q: Array, leaf: Array) -> Array:
    """[b, k, rows, d], scaled: the query heads and tokens that read one kv head."""
    b, t, _, d = q.shape
    kv_heads = leaf.shape[2]
    grouped = jnp.moveaxis(q.reshape(b, t, kv_heads, -1, d), 1, 3)
    return grouped.reshape(b, kv_heads, -1, d) * d**-0.5


def _from_rows(rows: Array, t: int, h: int) -> Array:
    b, kv_heads, _, d = rows.shape
    return jnp.moveaxis(rows.reshape(b, kv_heads, -1, t, d), 3, 1).reshape(b, t, h, d)


def _accumulate(carry: tuple[Array, Array, Array], scores: Array, seen: Array, mix) -> tuple:
    """The next m, l, acc of the running softmax, after scores of which some are seen."""
    m, l, acc = carry
    scores = jnp.where(seen, scores, -jnp.inf)
    m_next = jnp.maximum(m, jnp.max(scores, axis=-1))
    shrink, p = jnp.exp(m - m_next), jnp.exp(scores - m_next[..., None])
    return m_next, l * shrink + jnp.sum(p, axis=-1), acc * shrink[..., None] + mix(p)


def _scores(side: Format, rows: Array, span: _Span) -> Array:
    """q.r_s for the rows [b, k, r, d] and the tokens of a span: [b, k, r, s]."""
    few = _few(rows.shape[2], rows.shape[3])
    queries = side.split(rows) if few else (rows,)

    def put(first: Array | int, leaves: Stack, scores: Array) -> Array:
        products = _dot_planes(queries, _unpacked(side, leaves.k, few=few))
        return jax.lax.dynamic_update_slice_in_dim(scores, products, first, 3)

    scores = span.fold(put, jnp.zeros((*rows.shape[:3], span.size)))
    return _chained_scores(side, rows, span.whole().k, scores) if side.chained and few else scores


def _mix(side: Format, head_dim: int, span: _Span, p: Array) -> Array:
    """sum_s p_s r_s for the weights p [b, k, r, s]: [b, k, r, d]."""
    few, empty = _few(p.shape[2], head_dim), jnp.zeros((*p.shape[:3], head_dim))
    weights = _later_sums(side, p) if side.chained and few else p

    def add(first: Array | int, leaves: Stack, mixed: Planes) -> Planes:
        share = jax.lax.dynamic_slice_in_dim(weights, first, span.tile, 3)
        more = _mix_planes(share, _unpacked(side, leaves.v, few=few))
        return tuple(map(jnp.add, mixed, more))

    if not few:
        return span.fold(add, (empty,))[0]
    mixed = side.join(span.fold(add, side.split(empty)))
    return mixed + _mixed_base(side, span.whole().v, weights) if side.chained else mixed


def _unpacked(side: Format, leaves: Leaves, *, few: bool) -> Planes:
    """What is multiplied: a chain's terms in planes with few rows, the values with many.

    Putting the planes in order costs less than a product with many rows for each.
    """
    return side.terms(leaves) if few else (side.join(side.stored(leaves)),)


def _few(rows: int, head_dim: int) -> bool:
    """Whether a tile has more values than scores: then work on the scores is the cheaper one."""
    return rows < head_dim


def _chained_scores(side: Format, rows: Array, leaves: Leaves, products: Array) -> Array:
    """q.base + running sum of the products q.e_j."""
    first = _dot_planes((rows,), (side.base(leaves),))
    sums = _sum_in_groups(products.reshape(*first.shape, side.interval), jnp.triu)
    return (first[..., None] + sums).reshape(products.shape)


def _later_sums(side: Format, p: Array) -> Array:
    """The weight of each e_j: the reversed running sum of p."""
    groups = p.reshape(*p.shape[:-1], -1, side.interval)
    return _sum_in_groups(groups, jnp.tril).reshape(p.shape)


def _mixed_base(side: Format, leaves: Leaves, sums: Array) -> Array:
    """(sum of p) base: the first of the reversed running sums of a group is all of them."""
    return _dot("bkrg,bkgd->bkrd", sums[..., :: side.interval], side.base(leaves))


def _dot_planes(rows: Planes, keys: Planes) -> Array:
    """q.k of the rows [b, k, r, …] and the keys [b, k, s, …]: [b, k, r, s].

    XLA:CPU multiplies a tile with few rows a third faster if the tile comes first, and with many
    rows several times slower.
    """
    few = _few(rows[0].shape[2], sum(plane.shape[3] for plane in rows))
    axes = "bkrd,bksd->bksr" if few else "bkrd,bksd->bkrs"
    products = [_dot(axes, q, k) for q, k in zip(rows, keys, strict=True)]
    scores = sum(products[1:], products[0])
    return scores.swapaxes(2, 3) if few else scores


def _mix_planes(weights: Array, values: Planes) -> Planes:
    return tuple(_dot("bkrs,bksd->bkrd", weights, plane) for plane in values)


def _dot(axes: str, a: Array, b: Array) -> Array:
    """A product in full float32, which a GPU would otherwise round."""
    return jnp.einsum(axes, a, b, precision="highest")


def _sum_in_groups(x: Array, triangle: Callable[[Array], Array]) -> Array:
    """Sums of x [..., g, n] along n: running (upper triangle) or reversed running (lower).

    A product with a triangle of ones: N multiply-adds a scalar, but at the speed of a matmul.
    """
    return _dot("...n,nm->...m", x, triangle(jnp.ones((x.shape[-1], x.shape[-1]))))
