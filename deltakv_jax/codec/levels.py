"""Codes of few bits for blocks of values whose size and not whose sign is known: odd levels.

x ≈ scale * n (1 + bend n²), n = 2 code + 1 - 2^bits: odd numbers, so as many positive levels as
negative ones and none at 0, further apart where values are rare. A block shares one scale in a
byte: an exponent of 5 bits and a mantissa of 3 (e5m3), positive and without subnormals. Levels and
scales have few bits, so what is read back is exact in float32 in whatever program.

The scale is the one of a few with the least squared error. Errors are summed in a fixed order, and
no square is left to be fused with a sum: equal values give equal bytes, however many at once.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8

from deltakv_jax.codec.blocks import rounded
from deltakv_jax.typed import typed

_MANTISSA = 20
"""Bits of a float32 below those of a scale's byte."""

_LOWEST = 112 << 23
"""The bits of the float32 that the byte 0 stands for: 2^-15."""

_LARGEST_BYTE = 247
"""61440, which float16 holds."""

_FAR = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Levels:
    """What codes of so many bits stand for, times the scale.

    Attributes:
      bits: of a code.
      bend: in 4096ths; that of least squared error for normal values in blocks of 64.
      tried: scales that the encoder tries, in bytes above the one by which the largest value of a
        block is the largest level.
    """

    bits: int
    bend: int
    tried: tuple[int, ...]

    @property
    def count(self) -> int:
        """Levels."""
        return 1 << self.bits

    @functools.cached_property
    def sizes(self) -> tuple[float, ...]:
        """The positive levels, ascending."""
        return tuple(self.of(np.arange(1, self.count, 2, dtype=np.float64)).tolist())

    def of(self, n):
        """The levels of odd numbers n, in their dtype."""
        return n * (1 + self.bend / 4096 * (n * n)) if self.bend else n


LEVELS = {
    levels.bits: levels
    for levels in (
        Levels(2, 0, (-2, -4, -6, -8)),
        Levels(3, 31, (-1, -2, -3, -4)),
        Levels(4, 7, (0, -1, -2)),
    )
}
"""By the bits of a code."""

EVEN = Levels(4, 0, (0,))
"""16 levels at equal distances, for what is left of a value once it has been packed."""


@typed
def quantize_levels(
    x: Float32[Array, "*lead d"], levels: Levels, block: int
) -> tuple[UInt8[Array, "*lead d"], UInt8[Array, "*lead blocks"]]:
    """Codes, and bytes of scales."""
    parts = x.reshape(*x.shape[:-1], -1, block)
    size = jnp.abs(parts)
    largest = _nearest_byte(jnp.max(size, axis=-1) * np.float32(1 / levels.sizes[-1]))
    best = functools.reduce(
        _better, (_try(size, largest + offset, levels) for offset in levels.tried)
    )
    half = levels.count // 2
    codes = jnp.where(parts < 0, half - 1 - best.steps, half + best.steps).astype(jnp.uint8)
    return codes.reshape(x.shape), best.byte.astype(jnp.uint8)


@typed
def scale_values(scales: Array) -> Float32[Array, "*shape"]:
    """The scales that bytes stand for: 2^(exponent - 15) (1 + mantissa / 8)."""
    bits = (scales.astype(jnp.uint32) << _MANTISSA) + _LOWEST
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _nearest_byte(scale: Array) -> Array:
    """int32: the byte of the nearest scale, not yet within bounds; NaN and infinity give more."""
    bits = jax.lax.bitcast_convert_type(scale, jnp.int32) - _LOWEST
    return bits + (1 << _MANTISSA - 1) >> _MANTISSA


class _Tried(NamedTuple):
    """What a scale comes to.

    Attributes:
      byte: int32 [*lead].
      steps: int32 [*lead, b], see `_steps`.
      error: float32 [*lead], of the block.
    """

    byte: Array
    steps: Array
    error: Array


def _try(size: Array, byte: Array, levels: Levels) -> _Tried:
    byte = jnp.clip(byte, 0, _LARGEST_BYTE)
    scale = scale_values(byte)
    steps = _steps(size, scale, levels)
    return _Tried(byte, steps, _error(size, steps, scale, levels))


def _better(a: _Tried, b: _Tried) -> _Tried:
    """The one with the smaller error, block by block."""
    second = b.error < a.error
    return _Tried(
        jnp.where(second, b.byte, a.byte),
        jnp.where(second[..., None], b.steps, a.steps),
        jnp.minimum(a.error, b.error),
    )


def _steps(size: Array, scale: Array, levels: Levels) -> Array:
    """int32: which of the positive levels is nearest to each size [*lead, b]."""
    sizes = np.array(levels.sizes)
    between = ((sizes[1:] + sizes[:-1]) / 2).astype(np.float32)
    above = [(size > (scale * limit)[..., None]).astype(jnp.int32) for limit in between]
    return functools.reduce(jnp.add, above)


def _error(size: Array, steps: Array, scale: Array, levels: Levels) -> Array:
    """The sum of squares over each block."""
    made = levels.of((2 * steps + 1).astype(jnp.float32)) * scale[..., None]
    return _total(rounded((made - size) * (made - size), _FAR))


def _total(x: Array) -> Array:
    """The sum along the last axis in halves, as long as there are: an order that nobody changes."""
    while x.shape[-1] % 2 == 0:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return functools.reduce(jnp.add, (x[..., place] for place in range(x.shape[-1])))
