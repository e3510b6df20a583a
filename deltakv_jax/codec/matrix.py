"""How a matrix of weights is stored: the records that `matrices.py` tabulates.

A format packs rows into leaves and reads them in *parts*, each some positions of every block. Where
blocks of 32 values share a scale, value j of block b of a row lies at [j, b] of its leaf and not,
as in a GGUF file, at [b, j]: codes and scales are then equally long rows over b, which XLA:CPU
multiplies 16 at a time; spreading a scale over its block it does one by one.

Letters: m rows, n values of a row, j position in a block, b blocks of a row.
"""

import dataclasses
import math
from collections.abc import Mapping
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
    """

    count: ClassVar[int] = 2
    multiple: ClassVar[int] = BLOCK

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

    def read(self, leaves: MatrixLeaves) -> tuple[Scaled, ...]:
        scale, packed = leaves["scales"].astype(jnp.float32), leaves["codes"]
        return (Scaled((packed & 0xF, packed >> 4), scale, 8 * scale),)


@dataclasses.dataclass(frozen=True)
class _Q8_0(Blocks):  # noqa: N801
    """codes * scale: int8 codes."""

    count: ClassVar[int] = 1

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

    def read(self, leaves: MatrixLeaves) -> tuple[Scaled, ...]:
        return (Scaled((leaves["codes"],), leaves["scales"].astype(jnp.float32)),)


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
