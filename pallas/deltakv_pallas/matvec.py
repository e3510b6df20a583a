"""The product of a packed matrix with a few vectors: weights are read once, at their stored width.

x is cut into blocks like the weights, and its values become integers of 16 bits: two digits, signed
bytes. So a device multiplies four codes by four digits at once (`words`), sums are exact over a
block, and the result is that of float32 but for the rounding of x, 2^-16 of each block's largest
value. A program has some rows of the matrix, to which nobody else adds: results are the same bits
every time. A format needs no kernel of its own: `fields` and `factors` say what its leaves hold.

Letters: l layers, m rows of a matrix, n values of a row, b rows of x.
"""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from deltakv_jax.codec.matrix import Blocks
from deltakv_jax.codec.packing import BLOCK
from deltakv_jax.typed import typed
from deltakv_pallas.lowering import addressable, call, device_kind
from deltakv_pallas.matvec_program import BASE, Cut, Inputs, program
from deltakv_pallas.matvec_tuning import Tuning, matvec_tuning
from deltakv_pallas.weights import QUAD
from deltakv_pallas.words import family

Kind = tuple[Blocks, Mapping[str, Array]]
"""A format and its leaves [l, m, …]."""

_LARGEST = BASE * 127 + 127
"""The largest number of two signed digits."""

_PASSES = 2
"""With several vectors, at most."""

_WASTE = 7 / 6
"""Blocks that may be read in place of each one of a row, where chunks overlap."""


@typed
def matvec(
    kinds: Sequence[Kind],
    x: Float32[Array, "b n"],
    kind: jax.typing.ArrayLike,
    row: jax.typing.ArrayLike,
    *,
    interpret: bool = False,
    tuning: Tuning | None = None,
) -> Float32[Array, "b m"]:
    """Returns x @ W.T, W being the matrix `row` of the stack `kind`.

    Args:
      kinds: stacks of matrices of one shape [m, n], in one format each.
      x: the vectors.
      kind: which of the stacks; may be traced.
      row: which of its matrices; may be traced.
      interpret: run the kernel as plain JAX, on any machine.
      tuning: how to cut the work; by default the table's row for the device.

    Raises:
      UserError: where a leaf has a size that kernels cannot count in.
    """
    size = next(iter(kinds[0][1].values())).shape[1]
    tuning = tuning or _row(kinds[0][0], size, x.shape[1])
    cut = _cut(tuning, size, x.shape, family(interpret=interpret))
    padded = jnp.pad(x, ((0, -len(x) % cut.batch), (0, 0)))
    where = jnp.stack([jnp.asarray(one, jnp.int32) for one in (kind, row)])
    inputs = Inputs(where, *_digits(padded), [dict(leaves) for _, leaves in kinds])
    run = call(
        functools.partial(program, cut, tuple(format_ for format_, _ in kinds)),
        jax.ShapeDtypeStruct((len(padded), size), jnp.float32),
        name="matvec_packed",
        grid=(-(-size // cut.tile), len(padded) // cut.batch),
        warps=tuning.warps,
        stages=1,
        interpret=interpret,
    )
    return run(inputs)[: len(x)]


def timed_here(formats: Sequence[Blocks], rows: int, values: int) -> bool:
    """Whether the kernel was timed on this device for matrices of this shape in all formats."""
    return all(_row(format_, rows, values).timed for format_ in formats)


def readable(kind: Kind) -> bool:
    """Whether kernels can count in all leaves."""
    return all(addressable(leaf.size, leaf.dtype.itemsize) for leaf in kind[1].values())


def bytes_read(format_: Blocks, rows: int, values: int) -> int:
    """Bytes of a matrix, which a product must read."""
    return round(rows * values * format_.bits_per_weight / 8)


def _row(format_: Blocks, rows: int, values: int) -> Tuning:
    """The table's row on this device."""
    return matvec_tuning(device_kind(), format_.name, rows, values)


def _cut(tuning: Tuning, size: int, shape: tuple[int, ...], maker: str | None) -> Cut:
    """The cut for x of this shape and a matrix of `size` rows."""
    vectors, blocks = shape[0], shape[1] // BLOCK
    groups = -(-vectors // tuning.batch)
    batch, width = -(-vectors // groups), _width(blocks, tuning.width)
    most = 1 << (size.bit_length() - 1)
    rows = min(max(1, tuning.warps * tuning.warp * tuning.bytes // width), most)
    passes = _passes(tuning, size, rows, batch)
    return Cut(size, blocks, rows, passes, width, tuning.quads, batch, maker)


def _passes(tuning: Tuning, size: int, rows: int, batch: int) -> int:
    """As many as leave enough programs, and registers for the sums of several vectors."""
    passes = tuning.passes if batch == 1 else min(tuning.passes, _PASSES)
    while passes > 1 and size < max(tuning.programs, 1) * passes * rows:
        passes //= 2
    return passes


def _width(blocks: int, most: int) -> int:
    """The largest power of two up to `most` with which few enough blocks are read twice."""
    widths = (most >> i for i in range(most.bit_length()))
    fits = lambda width: width <= blocks and -(-blocks // width) * width <= _WASTE * blocks
    return next(filter(fits, widths))


def _digits(x: Array) -> tuple[Array, Array, Array]:
    """x, its scales and its sums, as `Inputs` has them: x ≈ scale (256 high + low)."""
    blocks = x.reshape(len(x), -1, BLOCK)
    scales = jnp.max(jnp.abs(blocks), axis=-1) / _LARGEST
    inverse = jnp.where(scales > 0, 1 / jnp.where(scales > 0, scales, 1), 0)
    whole = jnp.round(blocks * inverse[..., None]).astype(jnp.int32)
    high = whole + BASE // 2 >> 8
    digits = jnp.stack([high, whole - high * BASE]).astype(jnp.int8)
    words = jax.lax.bitcast_convert_type(_split_last(digits, QUAD), jnp.int32)
    sums = jnp.sum(_split_last(whole, BLOCK // 2), axis=-1) * scales[..., None]
    return jnp.moveaxis(words, -1, 1), scales, jnp.moveaxis(sums, -1, 0)


def _split_last(x: Array, size: int) -> Array:
    return x.reshape(*x.shape[:-1], -1, size)
