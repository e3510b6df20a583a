"""Attention to the packed cache as a kernel: each byte is read once, at its stored width.

Flash-decoding (Dao et al., 2023): the context is split over programs, each with a running softmax
over its own tiles, and a last step combines them. A program serves the query rows of one kv head,
which share its loads. A format needs no kernel of its own: its `terms` unpack a tile. A chain of
differences is not undone token by token. Inside a group q.r_t is q.base and the running sum of
q.e_j. Of the values, a matrix unit makes the running sums of the e_j, as a product with a triangle
of ones; without one, the e_j are weighted with the reversed running sum of p. The base is added
once for each group, with the sum of its weights.

Letters: b sequences, k kv heads, c blocks of query rows, r rows of a block, s splits of the
context, n tokens of a tile, p plane (see `Format.split`), w width of a plane, a power of two.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from deltakv_jax.cache import ALONE, KVCache, Step, near_in, slots, window_of
from deltakv_jax.codec import Format, KVSpec
from deltakv_jax.codec.hadamard import rotate
from deltakv_jax.errors import UserError
from deltakv_jax.typed import typed
from deltakv_pallas.halves import unpacking
from deltakv_pallas.lowering import call, device_kind
from deltakv_pallas.near import near_split
from deltakv_pallas.program import Cut, Inputs, Outputs, program
from deltakv_pallas.side import Side, power_of_two
from deltakv_pallas.tuning import Tuning, decode_tuning

_GROUPS = 16
"""Keyframes that are read at once: rows that a matrix unit takes at least."""

_PROMPT_ROWS = 16
"""Query rows of a block of a prompt, at least: all read a tile that is unpacked once."""


@typed
def attend_pallas(
    q: Float32[Array, "b t h d"],
    positions: Int32[Array, "b t"],
    cache: KVCache,
    layer: Int32[Array, ""] | int,
    step: Step = ALONE,
    *,
    interpret: bool = False,
    tuning: Tuning | None = None,
) -> Float32[Array, "b t h d"]:
    """What `attend_reference` computes, as a kernel over the packed leaves.

    Products are taken in the formats' `operand` dtype, and summed in float32.

    Args:
      q: queries after RoPE.
      positions: of each query; its own token is already written.
      cache: the cache.
      layer: the layer to read.
      step: what else is known of the step.
      interpret: run the kernel as plain JAX, on any machine.
      tuning: how to cut the work; by default the table's row for the device.

    Raises:
      UserError: where a format is not one that the kernel reads.
    """
    kind_of, row = cache.layout.find(layer)
    attend = functools.partial(_attend_kind, cache, step, tuning, interpret)
    branches = [functools.partial(attend, kind) for kind in range(len(cache.stacks))]
    return jax.lax.switch(kind_of, branches, row, q, positions)


def _attend_kind(
    cache: KVCache,
    step: Step,
    tuning: Tuning | None,
    interpret: bool,
    kind: int,
    row: Array,
    q: Array,
    positions: Array,
) -> Array:
    spec, stack = cache.layout.kinds[kind], cache.stacks[kind]
    _check(spec, cache.head_dim)
    kv_heads = next(iter(stack.k.values())).shape[2]
    heads = q.shape[2] // kv_heads
    tuning = tuning or _row(cache, kind, heads)
    cut = _cut(cache, kind, tuning, q.shape, interpret)
    rows = _to_rows(cut, rotate(q) if spec.k.rotate else q, kv_heads)
    planes = jnp.stack([cut.k.pad(plane) for plane in spec.k.split(rows)], axis=3)
    queries, columns = planes.astype(spec.k.operand), (cut.k.columns(), cut.v.columns())
    limits = _to_row_heads(cut, positions - window_of(spec)[0], heads, -1)
    inputs = Inputs(row[None], limits, queries, stack.k, stack.v, *columns)
    b, _, blocks = rows.shape[:3]
    run = call(
        functools.partial(program, cut),
        _outputs(cut, (b, kv_heads, blocks)),
        name="attend_packed",
        grid=(b, kv_heads * blocks, cut.splits),
        warps=tuning.warps,
        stages=tuning.stages,
        interpret=interpret,
    )
    splits = run(inputs)
    if near := near_in(cache, kind, row, positions, step):
        seen = _to_row_heads(cut, near.seen(positions), heads, value=False)
        splits = _beside(splits, near_split(cut, spec, near, rows, seen))
    out = _from_rows(cut, _combine(spec.v, splits, cache.head_dim), q.shape)
    return rotate(out) if spec.v.rotate else out


def _outputs(cut: Cut, lead: tuple[int, ...]) -> Outputs:
    """The shapes of what the programs write; `lead` is [b, k, c]."""
    shape = lambda *last: jax.ShapeDtypeStruct((*lead, cut.splits, *last, cut.rows), jnp.float32)
    widths = cut.v.widths()
    return Outputs(shape(len(widths), widths[0]), shape(), shape())


def _cut(
    cache: KVCache, kind: int, tuning: Tuning, q_shape: tuple[int, ...], interpret: bool
) -> Cut:
    """The cut for queries [b, t, h, d] over one stack of a cache."""
    spec, total, (b, t, h, d) = cache.layout.kinds[kind], slots(cache, kind), q_shape
    kv_heads = next(iter(cache.stacks[kind].k.values())).shape[2]
    tile = min(tuning.tile, 1 << (total.bit_length() - 1))
    intervals = [side.interval for side in (spec.k, spec.v) if side.chained] or [1]
    prompt = _PROMPT_ROWS if t > 1 and tuning.matrix_units else 1
    rows = max(tuning.rows, power_of_two(h // kv_heads), prompt)
    queries = min(t, rows * kv_heads // h)
    run = max(1, max(intervals) // tile)
    programs = b * kv_heads * -(-t // queries)
    k, v = (Side(side, d, tile, unpacking(interpret=interpret)) for side in (spec.k, spec.v))
    return Cut(
        k=k,
        v=v,
        slots=total,
        run=run,
        queries=queries,
        rows=rows,
        sinks=window_of(spec)[1],
        splits=min(max(1, tuning.programs // programs), -(-total // (run * tile))),
        groups=max(_GROUPS if tuning.matrix_units else 1, tile // min(intervals)),
        matrix_units=tuning.matrix_units,
        half_sums=tuning.half_sums and not interpret,
    )


def timed_here(cache: KVCache, heads: int) -> bool:
    """Whether the kernel was timed on this device for all formats of a cache.

    Args:
      cache: the cache.
      heads: query heads that share a kv head.
    """
    return all(_row(cache, kind, heads).timed for kind in range(len(cache.stacks)))


def _row(cache: KVCache, kind: int, heads: int) -> Tuning:
    """The table's row for one stack of a cache on this device."""
    spec = _stored(cache.layout.kinds[kind])
    return decode_tuning(device_kind(), spec, cache.head_dim, heads)


def _stored(spec: KVSpec) -> str:
    """The spec but for what the kernel does not see."""
    sides = (
        dataclasses.replace(side, rotate=False, window=type(side).window, sinks=type(side).sinks)
        for side in (spec.k, spec.v)
    )
    return str(KVSpec(*sides))


def _check(spec: KVSpec, head_dim: int) -> None:
    for side in (spec.k, spec.v):
        if side.interval != power_of_two(side.interval):
            raise UserError(
                f"the kernels read intervals that are powers of two, {side} has "
                f"{side.interval}; attention by xla reads it"
            )
        if side.centre:
            raise UserError(f"the kernels know no centre; attention by xla reads {side}")
        _check_scales(side, head_dim)


def _check_scales(side: Format, head_dim: int) -> None:
    """A plane that is padded must have one scale: padding would move the others."""
    scales = side.leaves(head_dim).get("scales")
    if (
        head_dim != power_of_two(head_dim)
        and scales
        and not scales.widened
        and scales.width > side.planes
    ):
        raise UserError(
            f"the kernels read {side} with a head_dim that is a power of two or at most "
            f"{side.planes} blocks, this model's is {head_dim}; attention by xla reads it"
        )


def _to_rows(cut: Cut, q: Array, kv_heads: int) -> Array:
    """[b, k, c, r, d]: blocks of query tokens with the heads that read one kv head.

    Scaled so that scores are exponents of 2.
    """
    b, t, h, d = q.shape
    blocks = -(-t // cut.queries)
    padded = jnp.pad(
        q * (d**-0.5 / math.log(2)), ((0, 0), (0, blocks * cut.queries - t), (0, 0), (0, 0))
    )
    grouped = padded.reshape(b, blocks, cut.queries, kv_heads, h // kv_heads, d)
    rows = jnp.moveaxis(grouped, 3, 1).reshape(b, kv_heads, blocks, -1, d)
    return jnp.pad(rows, [(0, 0)] * 3 + [(0, cut.rows - rows.shape[3]), (0, 0)])


def _to_row_heads(cut: Cut, x: Array, heads: int, value: int) -> Array:
    """[b, c, r, …]: what queries [b, t, …] have, for each of their rows; `value` for padding."""
    b, t, *rest = x.shape
    pad = lambda x, axis, more: jnp.pad(
        x, [(0, more if at == axis else 0) for at in range(x.ndim)], constant_values=value
    )
    blocks = -(-t // cut.queries)
    blocked = pad(x, 1, blocks * cut.queries - t).reshape(b, blocks, cut.queries, *rest)
    rows = jnp.repeat(blocked, heads, axis=2)
    return pad(rows, 2, cut.rows - rows.shape[2])


def _beside(splits: Outputs, more: Outputs) -> Outputs:
    """The splits of both."""
    return Outputs(*(jnp.concatenate(pair, axis=3) for pair in zip(splits, more, strict=True)))


def _combine(side: Format, splits: Outputs, head_dim: int) -> Array:
    """[b, k, c, r, d]: the splits' softmaxes put together, in the stored frame."""
    weights = jnp.exp2(splits.m - jnp.max(splits.m, axis=3, keepdims=True))
    total = jnp.sum(splits.l * weights, axis=3)
    shares = weights / jnp.where(total > 0, total, 1)[:, :, :, None]  # rows of padding see nothing
    mixed = jnp.sum(splits.acc * shares[..., None, None, :], axis=3)  # [b, k, c, p, w, r]
    planes = side.split(jnp.zeros(head_dim))
    kept = jnp.swapaxes(mixed[..., : len(planes[0]), :], -1, -2)
    return side.join(tuple(kept[..., p, :, :] for p in range(len(planes))))


def _from_rows(cut: Cut, rows: Array, shape: tuple[int, ...]) -> Array:
    b, t, h, d = shape
    kv_heads, blocks = rows.shape[1:3]
    kept = rows[:, :, :, : cut.queries * h // kv_heads]
    grouped = kept.reshape(b, kv_heads, blocks, cut.queries, h // kv_heads, d)
    return jnp.moveaxis(grouped, 1, 3).reshape(b, blocks * cut.queries, h, d)[:, :t]
