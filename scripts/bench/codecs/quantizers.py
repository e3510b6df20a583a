"""Quantisers of blocks along the last axis: the round trip of values, and its bits.

x ≈ level * scale: the levels are a table that all blocks share, the scale is the block's own. Only
what would be read back is made here; nothing is packed.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deltakv_jax.codec import blocks

SCALE_BITS = {"f16": 16, "e5m3": 8}
_SMALLEST = 2.0**-24
_NORMAL_DRAWS = 400_000


def stored_scale(scale: Array, kind: str) -> Array:
    """A scale as it is stored. e5m3, for positive ones: float16 without sign and 7 low bits."""
    half = scale.astype(jnp.float16)
    if kind == "e5m3":
        bits = jnp.clip(scale, _SMALLEST, 6e4).astype(jnp.float16).view(jnp.uint16)
        half = ((bits + (1 << 6)) >> 7 << 7).view(jnp.float16)
    return half.astype(jnp.float32)


def levels_uniform(count: int) -> tuple[float, ...]:
    """A step of 1, as many positive as negative ones."""
    return tuple(code - (count - 1) / 2 for code in range(count))


def levels_cubic(count: int, bend: float) -> tuple[float, ...]:
    """Each c of `levels_uniform` becomes c (1 + bend c²): wide steps for large values, no table."""
    return tuple(c * (1 + bend * c * c) for c in levels_uniform(count))


@functools.cache
def levels_normal(count: int) -> tuple[float, ...]:
    """Those of least squared error for normal values (Lloyd, 1982), times a constant."""
    x = np.sort(np.abs(np.random.default_rng(0).standard_normal(_NORMAL_DRAWS)))
    half = (np.arange(count // 2) + 0.5) * 6 / count
    for _ in range(500):
        owner = np.searchsorted((half[1:] + half[:-1]) / 2, x)
        half = np.bincount(owner, x, len(half)) / np.bincount(owner, minlength=len(half))
    return (*(-half[::-1]).tolist(), *half.tolist())


def nearest(x: Array, levels: tuple[float, ...]) -> Array:
    """The level next to each x."""
    table = jnp.array(levels, jnp.float32)
    return table[jnp.searchsorted((table[1:] + table[:-1]) / 2, x, method="compare_all")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """q8_0, q5_0 and q4_0 of llama.cpp, and the like with fewer bits."""

    bits: int
    block: int = 32

    def bits_per_value(self, dim: int) -> float:
        """Codes and float16 scales."""
        del dim
        return self.bits + 16 / self.block

    def __call__(self, x: Array) -> Array:
        """The round trip of [*lead, d]."""
        if self.bits == 8:
            return blocks.dequantize_q8_0(*blocks.quantize_q8_0(x))
        half = 2 ** (self.bits - 1)
        parts = _parts(x, self.block)
        largest = jnp.argmax(jnp.abs(parts), axis=-1, keepdims=True)
        scale = jnp.take_along_axis(parts, largest, axis=-1) / -half
        codes = jnp.minimum(jnp.trunc(parts * _inverse(scale) + half + 0.5), 2 * half - 1)
        return ((codes - half) * stored_scale(scale, "f16")).reshape(x.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled:
    """Levels times a scale for each block.

    Attributes:
      levels: ascending, symmetric about 0.
      block: values that share a scale.
      scale: what it is stored as, a key of `SCALE_BITS`.
      tried: the scale is the best of those that put the block's largest magnitude at these
        multiples of the largest level, by squared error; one is no search.
    """

    levels: tuple[float, ...]
    block: int = 64
    scale: str = "e5m3"
    tried: tuple[float, ...] = (1.0,)

    def bits_per_value(self, dim: int) -> float:
        """Codes and scales."""
        del dim
        return math.log2(len(self.levels)) + SCALE_BITS[self.scale] / self.block

    def __call__(self, x: Array) -> Array:
        """The round trip of [*lead, d]."""
        return self._searched(x)[1].reshape(x.shape)

    def best_scale(self, x: Array) -> Array:
        """The scale of each block, [*lead, blocks]."""
        return self._searched(x)[0][..., 0]

    def _searched(self, x: Array) -> tuple[Array, Array]:
        """Scales [*lead, blocks, 1] and blocks [*lead, blocks, block] as they come back."""
        parts = _parts(x, self.block)
        largest = jnp.max(jnp.abs(parts), axis=-1, keepdims=True) / self.levels[-1]
        best, made, error = largest, parts, jnp.full(largest.shape, jnp.inf)
        for multiple in self.tried:
            scale = jnp.maximum(stored_scale(largest / multiple, self.scale), _SMALLEST)
            its = self.round_trip(parts / scale) * scale
            worse = jnp.sum((its - parts) ** 2, axis=-1, keepdims=True)
            better = worse < error
            best, made = jnp.where(better, scale, best), jnp.where(better, its, made)
            error = jnp.minimum(worse, error)
        return best, made

    def round_trip(self, x: Array) -> Array:
        """Of values of scale 1."""
        return nearest(x, self.levels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asymmetric:
    """x ≈ code * scale + least, from the least to the largest value of a block; both float16."""

    bits: int
    block: int = 32

    def bits_per_value(self, dim: int) -> float:
        """Codes, scales and least values."""
        del dim
        return self.bits + 32 / self.block

    def __call__(self, x: Array) -> Array:
        """The round trip of [*lead, d]."""
        parts = _parts(x, self.block)
        least = stored_scale(jnp.min(parts, axis=-1, keepdims=True), "f16")
        span = jnp.max(parts, axis=-1, keepdims=True) - least
        scale = stored_scale(span / (2**self.bits - 1), "f16")
        codes = jnp.clip(jnp.round((parts - least) * _inverse(scale)), 0, 2**self.bits - 1)
        return (codes * scale + least).reshape(x.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normed:
    """Levels for normal values times the root mean square of a whole vector, in float16."""

    bits: int

    def bits_per_value(self, dim: int) -> float:
        """Codes and norms."""
        return self.bits + 16 / dim

    def __call__(self, x: Array) -> Array:
        """The round trip of [*lead, d]."""
        scale = stored_scale(jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True)), "f16")
        return nearest(x * _inverse(scale), levels_normal(2**self.bits)) * scale


def _parts(x: Array, block: int) -> Array:
    return x.reshape(*x.shape[:-1], -1, block)


def _inverse(scale: Array) -> Array:
    return jnp.where(scale == 0, 0.0, 1 / jnp.where(scale == 0, 1.0, scale))
