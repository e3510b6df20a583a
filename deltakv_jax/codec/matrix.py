"""How a matrix of weights is stored: the records that `matrices.py` tabulates.

A format packs rows into leaves and reads them in *parts*, each some positions of every block. Where
blocks of 32 values share a scale, value j of block b of a row lies at [j, b] of its leaf and not,
as in a GGUF file, at [b, j]: codes and scales are then equally long rows over b, which XLA:CPU
multiplies 16 at a time; spreading a scale over its block it does one by one.

Letters: m rows, n values of a row, j position in a block, b blocks of a row.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array

from deltakv_jax.codec import blocks
from deltakv_jax.codec.packing import BLOCK

MatrixLeaves = Mapping[str, Any]
"""Arrays of NumPy or JAX by their names, each [*lead, *shape of a row]."""

_HALF = BLOCK // 2


Parts = tuple[Array, ...]
"""Values or codes of rows, in the parts in which they are read."""


class Field(NamedTuple):
    """Which bits are the codes of one part.

    Attributes:
      leaf: whose bytes hold them.
      shift: of the nibbles, 0 or 4; None where each byte is a code.
      high: bits of the leaf `high` that are the codes' higher ones, at their place in a code; 0 for
        none.
      high_shift: by how much they must move to the left to get there.
    """

    leaf: str
    shift: int | None = None
    high: int = 0
    high_shift: int = 0

    def codes(self, leaves: MatrixLeaves) -> Array:
        """The codes, in the shape of the leaf."""
        packed = leaves[self.leaf]
        if self.shift is None:
            return packed
        nibbles = packed >> 4 if self.shift else packed & 0xF
        if not self.high:
            return nibbles
        high, shift = leaves["high"], self.high_shift
        return nibbles | (high << shift if shift > 0 else high >> -shift) & self.high


Factors = tuple[tuple[Array, Array | None], ...]
"""The scale and the offset, if any, of each run of equally many parts."""


class Scaled(NamedTuple):
    """Values codes * scale - offset.

    Attributes:
      codes: parts [*lead, j, b], or one of values [*lead, n] that have neither scale nor offset.
      scale: float32 [*lead, b], or None.
      offset: float32 [*lead, b], or None.
    """

    codes: Parts
    scale: Array | None = None
    offset: Array | None = None

    def values(self) -> Parts:
        """Float32, in the shapes of the codes."""
        return tuple(self._values(codes) for codes in self.codes)

    def _values(self, codes: Array) -> Array:
        values = codes.astype(jnp.float32)
        if self.scale is not None:
            values = values * self.scale[..., None, :]
        return values if self.offset is None else values - self.offset[..., None, :]


class RowLeaf(NamedTuple):
    """What one row of a matrix has in one leaf."""

    shape: tuple[int, ...]
    dtype: Any


@dataclasses.dataclass(frozen=True)
class MatrixFormat:
    """A way to store a matrix. Hashable, so static under `jit`.

    Attributes:
      name: the type's name, as GGUF has it, in lower case.
      multiple: values that are stored together; the length of a row is a multiple.
    """

    name: str
    multiple: ClassVar[int] = 1

    def leaves(self, n: int) -> dict[str, RowLeaf]:
        """What a row of n values has in each leaf."""
        raise NotImplementedError

    def pack(self, raw: np.ndarray) -> MatrixLeaves:
        """The leaves of rows as a GGUF file has them, uint8 [m, bytes of a row]."""
        raise NotImplementedError

    def quantize(self, values: np.ndarray) -> MatrixLeaves:
        """The leaves of values [m, n] of any float type."""
        raise NotImplementedError

    def read(self, leaves: MatrixLeaves) -> tuple[Scaled, ...]:
        """The stored values of leaves [*lead, …], in parts, by the scales that these share."""
        raise NotImplementedError

    def split(self, x: Array) -> Parts:
        """[*lead, n] in the parts of `read`, each in the shape of its codes."""
        raise NotImplementedError

    def join(self, parts: Parts) -> Array:
        """The inverse of `split`."""
        raise NotImplementedError

    def parts(self, leaves: MatrixLeaves) -> Parts:
        """The values, float32, in parts."""
        return tuple(part for scaled in self.read(leaves) for part in scaled.values())

    def dequantize(self, leaves: MatrixLeaves) -> Array:
        """The values, float32 [*lead, n]."""
        return self.join(self.parts(leaves))

    def finite(self, leaves: MatrixLeaves) -> bool:
        """Whether all stored values are, for leaves of NumPy."""
        floats = [leaf for leaf in leaves.values() if np.issubdtype(leaf.dtype, np.floating)]
        return all(bool(np.isfinite(leaf).all()) for leaf in floats)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a stored value takes, scales included."""
        rows = self.leaves(self.multiple).values()
        size = sum(math.prod(row.shape) * jnp.dtype(row.dtype).itemsize for row in rows)
        return 8 * size / self.multiple


@dataclasses.dataclass(frozen=True)
class _Narrow(MatrixFormat):
    """16-bit floats, widened to float32 tile by tile.

    For processors that cannot multiply them as they are. bfloat16 is kept as its bits: XLA:CPU
    widens a whole array of bfloat16 wherever a loop slices it.
    """

    value: Any
    stored: Any

    def leaves(self, n: int) -> dict[str, RowLeaf]:
        return {"values": RowLeaf((n,), self.stored)}

    def quantize(self, values: np.ndarray) -> MatrixLeaves:
        return {"values": values.astype(self.value).view(self.stored)}

    def read(self, leaves: MatrixLeaves) -> tuple[Scaled, ...]:
        stored = leaves["values"]
        if self.value == self.stored:
            return (Scaled((stored.astype(jnp.float32),)),)
        bits = stored.astype(jnp.uint32) << 16
        return (Scaled((jax.lax.bitcast_convert_type(bits, jnp.float32),)),)

    def split(self, x: Array) -> Parts:
        return (x,)

    def join(self, parts: Parts) -> Array:
        return parts[0]

    def finite(self, leaves: MatrixLeaves) -> bool:
        return bool(np.isfinite(leaves["values"].view(self.value)).all())


@dataclasses.dataclass(frozen=True)
class Blocks(MatrixFormat):
    """Codes in blocks of 32 that share a scale.

    Attributes:
      count: parts, of equally many positions of a block that follow each other.
      runs: of parts that share a scale.
      middle: of the codes: that of a value of 0 or, where blocks have floors, about their mean.
      floors: whether blocks have offsets of their own, and not just `middle` times the scale.
      per: blocks that share what a leaf has fewer numbers of than there are blocks.
    """

    count: ClassVar[int] = 2
    runs: ClassVar[int] = 1
    middle: ClassVar[int]
    floors: ClassVar[bool] = False
    per: ClassVar[int] = 1
    multiple: ClassVar[int] = BLOCK

    def fields(self) -> tuple[Field, ...]:
        """Where the codes of each part are."""
        raise NotImplementedError

    def factors(self, leaf: Callable[..., Array]) -> Factors:
        """The scales and offsets of blocks.

        Args:
          leaf: gives the numbers of a leaf, float32 for each block: leaf(name), or leaf(name, run)
            where each run has its own.
        """
        raise NotImplementedError

    def read(self, leaves: MatrixLeaves) -> tuple[Scaled, ...]:
        """The stored values, by the scales that parts share."""
        codes = [field.codes(leaves) for field in self.fields()]
        each = self.count // self.runs
        factors = self.factors(functools.partial(self._by_block, leaves))
        return tuple(
            Scaled(tuple(codes[i * each : (i + 1) * each]), *pair) for i, pair in enumerate(factors)
        )

    def _by_block(self, leaves: MatrixLeaves, name: str, *run: int) -> Array:
        numbers = leaves[name].astype(jnp.float32)
        if run:
            return numbers[..., run[0], :]
        blocks = leaves[self.fields()[0].leaf].shape[-1]
        return jnp.repeat(numbers, self.per, axis=-1) if numbers.shape[-1] < blocks else numbers

    def split(self, x: Array) -> Parts:
        """[*lead, n] as parts [*lead, j, b]."""
        # A gather and no transpose, which XLA:CPU would leave undone: a product would then pick
        # each value of x from where it was, one by one.
        order = np.arange(x.shape[-1]).reshape(-1, BLOCK).T
        return tuple(x[..., part] for part in np.split(order, self.count))

    def join(self, parts: Parts) -> Array:
        """The inverse of `split`."""
        whole = jnp.swapaxes(jnp.concatenate(parts, axis=-2), -1, -2)
        return whole.reshape(*whole.shape[:-2], -1)


@dataclasses.dataclass(frozen=True)
class _Q4_0(Blocks):  # noqa: N801
    """codes * scale - 8 * scale: codes 0 … 15, values j and j + 16 of a block in one byte."""

    middle: ClassVar[int] = 8

    def leaves(self, n: int) -> dict[str, RowLeaf]:
        return {
            "codes": RowLeaf((_HALF, n // BLOCK), jnp.uint8),
            "scales": RowLeaf((n // BLOCK,), jnp.float16),
        }

    def pack(self, raw: np.ndarray) -> MatrixLeaves:
        scales, codes = fields(raw, 2, _HALF)
        return {"codes": across(codes), "scales": halves(scales)}

    def quantize(self, values: np.ndarray) -> MatrixLeaves:
        codes, scales = jax.jit(blocks.quantize_q4_0)(values.astype(np.float32))
        bytes_ = np.asarray(codes).view(np.uint8)
        return {"codes": across(_numpy_blocks(bytes_, _HALF)), "scales": np.asarray(scales)}

    def fields(self) -> tuple[Field, ...]:
        return Field("codes", 0), Field("codes", 4)

    def factors(self, leaf: Callable[..., Array]) -> Factors:
        scale = leaf("scales")
        return ((scale, 8 * scale),)


@dataclasses.dataclass(frozen=True)
class _Q8_0(Blocks):  # noqa: N801
    """codes * scale: int8 codes."""

    count: ClassVar[int] = 1
    middle: ClassVar[int] = 0

    def leaves(self, n: int) -> dict[str, RowLeaf]:
        return {
            "codes": RowLeaf((BLOCK, n // BLOCK), jnp.int8),
            "scales": RowLeaf((n // BLOCK,), jnp.float16),
        }

    def pack(self, raw: np.ndarray) -> MatrixLeaves:
        scales, codes = fields(raw, 2, BLOCK)
        return {"codes": across(codes.view(np.int8)), "scales": halves(scales)}

    def quantize(self, values: np.ndarray) -> MatrixLeaves:
        codes, scales = jax.jit(blocks.quantize_q8_0)(values.astype(np.float32))
        return {"codes": across(_numpy_blocks(codes, BLOCK)), "scales": np.asarray(scales)}

    def fields(self) -> tuple[Field, ...]:
        return (Field("codes"),)

    def factors(self, leaf: Callable[..., Array]) -> Factors:
        return ((leaf("scales"), None),)


BF16 = _Narrow("bf16", ml_dtypes.bfloat16, np.uint16)
F16 = _Narrow("f16", np.float16, np.float16)
Q8_0, Q4_0 = _Q8_0("q8_0"), _Q4_0("q4_0")


def fields(raw: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """Blocks of uint8 [m, bytes of a row], taken apart: one [m, blocks, size] for each size."""
    whole = raw.reshape(len(raw), -1, sum(sizes))
    return np.split(whole, np.cumsum(sizes)[:-1], axis=-1)


def halves(field: np.ndarray) -> np.ndarray:
    """The float16 numbers of a field of two bytes: [m, blocks]."""
    return np.ascontiguousarray(field).view(np.float16)[..., 0]


def across(codes: np.ndarray) -> np.ndarray:
    """[m, blocks, j] as [m, j, blocks]."""
    return np.ascontiguousarray(np.swapaxes(codes, -1, -2))


def _numpy_blocks(codes: Any, size: int) -> np.ndarray:
    return np.asarray(codes).reshape(len(codes), -1, size)
