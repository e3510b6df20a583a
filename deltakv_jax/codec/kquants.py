"""llama.cpp's K types: 256 values share float16 factors, and each 16 or 32 of them small integers.

q4_k and q5_k: x ≈ d * step * code - dmin * floor, a step and a floor of 6 bits per 32 values.
q6_k: x ≈ d * step * code, a step of 8 bits per 16 values.
Steps and floors are kept in a byte each, so that q4_k and q5_k take 1/8 bit more than in a file.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deltakv_jax.codec.matrix import (
    Blocks,
    Factors,
    Field,
    MatrixLeaves,
    RowLeaf,
    across,
    fields,
    halves,
)
from deltakv_jax.codec.packing import BLOCK

SUPER = 256
_HALF = BLOCK // 2
_PARTS = SUPER // BLOCK
_SCALE_BYTES = 12  # eight steps and eight floors of 6 bits


@dataclasses.dataclass(frozen=True)
class _K(Blocks):
    """Codes as nibbles, and higher bits of each, if any, in a leaf `high`.

    Part i of the codes has its higher bits in the i-th group of bits of the bytes of `high`. Its
    nibbles are the low ones of the i-th leaf of codes, or, from half of the parts on, the high ones
    of those leaves again. One leaf with slices of it would do, but not vectorise on a CPU.
    """

    multiple: ClassVar[int] = SUPER
    per: ClassVar[int] = SUPER // BLOCK
    high_bits: ClassVar[int] = 0

    def leaves(self, n: int) -> dict[str, RowLeaf]:
        blocks, size = n // BLOCK, BLOCK // self.count
        high = {"high": RowLeaf((size, blocks), jnp.uint8)} if self.high_bits else {}
        return {
            **{name: RowLeaf((size, blocks), jnp.uint8) for name in self._code_leaves()},
            **high,
            **self._scale_leaves(blocks, n // SUPER),
        }

    def _code_leaves(self) -> list[str]:
        return [f"codes{i}" for i in range(self.count // 2)]

    def _scale_leaves(self, blocks: int, supers: int) -> dict[str, RowLeaf]:
        raise NotImplementedError

    def _pack_codes(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """The leaves of codes uint8 [m, blocks, 32]."""
        nibbles = codes & 0xF
        parts = np.split(nibbles[..., :_HALF] | nibbles[..., _HALF:] << 4, self.count // 2, axis=-1)
        packed = {k: across(part) for k, part in zip(self._code_leaves(), parts, strict=True)}
        if self.high_bits:
            per_byte = 8 // self.high_bits
            high = (codes >> 4).reshape(*codes.shape[:-1], per_byte, -1)
            shifts = np.arange(0, 8, self.high_bits, dtype=np.uint8)[:, None]
            packed["high"] = across(np.bitwise_or.reduce(high << shifts, axis=-2))
        return packed

    def fields(self) -> tuple[Field, ...]:
        return tuple(self._field(i) for i in range(self.count))

    def _field(self, i: int) -> Field:
        half = self.count // 2
        high, shift = (1 << self.high_bits) - 1 << 4, 4 - i * self.high_bits
        return Field(f"codes{i % half}", 4 * (i // half), high, shift if self.high_bits else 0)


@dataclasses.dataclass(frozen=True)
class _WithFloors(_K):
    """q4_k and q5_k: eight blocks have steps and floors under two float16 factors."""

    floors: ClassVar[bool] = True

    def _scale_leaves(self, blocks: int, supers: int) -> dict[str, RowLeaf]:
        return {
            "steps": RowLeaf((blocks,), jnp.uint8),
            "floors": RowLeaf((blocks,), jnp.uint8),
            "d": RowLeaf((supers,), jnp.float16),
            "dmin": RowLeaf((supers,), jnp.float16),
        }

    def pack(self, raw: np.ndarray) -> MatrixLeaves:
        d, dmin, packed, *bits = fields(raw, 2, 2, _SCALE_BYTES, *self._code_fields())
        steps, floors = _steps_and_floors(packed)
        flat = lambda x: np.ascontiguousarray(x.reshape(len(raw), -1))
        return {
            **self._pack_codes(self._file_codes(*bits).reshape(len(raw), -1, BLOCK)),
            "steps": flat(steps),
            "floors": flat(floors),
            "d": halves(d),
            "dmin": halves(dmin),
        }

    def _code_fields(self) -> tuple[int, ...]:
        """Sizes of the fields of a file's block that hold the codes."""
        raise NotImplementedError

    def _file_codes(self, *bits: np.ndarray) -> np.ndarray:
        """The codes of those fields: [m, supers, 8, 32]."""
        raise NotImplementedError

    def factors(self, leaf: Callable[..., Array]) -> Factors:
        return ((leaf("d") * leaf("steps"), leaf("dmin") * leaf("floors")),)


@dataclasses.dataclass(frozen=True)
class _Q4_K(_WithFloors):  # noqa: N801
    """Codes of 4 bits."""

    middle: ClassVar[int] = 8

    def _code_fields(self) -> tuple[int, ...]:
        return (SUPER // 2,)

    def _file_codes(self, *bits: np.ndarray) -> np.ndarray:
        return _pairs_of_blocks(bits[0])


@dataclasses.dataclass(frozen=True)
class _Q5_K(_WithFloors):  # noqa: N801
    """Codes of 5 bits."""

    middle: ClassVar[int] = 16
    count: ClassVar[int] = 8
    high_bits: ClassVar[int] = 1

    def _code_fields(self) -> tuple[int, ...]:
        return (BLOCK, SUPER // 2)

    def _file_codes(self, *bits: np.ndarray) -> np.ndarray:
        high, low = bits
        eighths = np.arange(_PARTS, dtype=np.uint8)[:, None]
        return _pairs_of_blocks(low) | (high[..., None, :] >> eighths & 1) << 4


@dataclasses.dataclass(frozen=True)
class _Q6_K(_K):  # noqa: N801
    """Codes -32 … 31, stored 32 more; each half of a block has a step of its own."""

    count: ClassVar[int] = 4
    runs: ClassVar[int] = 2
    middle: ClassVar[int] = 32
    high_bits: ClassVar[int] = 2

    def _scale_leaves(self, blocks: int, supers: int) -> dict[str, RowLeaf]:
        return {"steps": RowLeaf((2, blocks), jnp.int8), "d": RowLeaf((supers,), jnp.float16)}

    def pack(self, raw: np.ndarray) -> MatrixLeaves:
        low, high, steps, d = fields(raw, SUPER // 2, SUPER // 4, SUPER // 16, 2)
        lead = (*low.shape[:2], 2)
        low, high = low.reshape(*lead, 2, BLOCK), high.reshape(*lead, 1, BLOCK)
        quarters = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        codes = np.concatenate([low & 0xF, low >> 4], axis=-2) | (high >> quarters & 3) << 4
        return {
            **self._pack_codes(codes.reshape(len(raw), -1, BLOCK)),
            "steps": across(steps.view(np.int8).reshape(len(raw), -1, 2)),
            "d": halves(d),
        }

    def factors(self, leaf: Callable[..., Array]) -> Factors:
        d = leaf("d")
        scales = (d * leaf("steps", run) for run in range(self.runs))
        return tuple((scale, 32 * scale) for scale in scales)


Q4_K, Q5_K, Q6_K = _Q4_K("q4_k"), _Q5_K("q5_k"), _Q6_K("q6_k")


def _pairs_of_blocks(packed: np.ndarray) -> np.ndarray:
    """Nibbles of which 32 low ones and then the 32 high ones make two blocks: […, 8, 32]."""
    pairs = packed.reshape(*packed.shape[:-1], _PARTS // 2, 1, BLOCK)
    both = np.concatenate([pairs & 0xF, pairs >> 4], axis=-2)
    return both.reshape(*packed.shape[:-1], _PARTS, BLOCK)


def _steps_and_floors(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight steps and eight floors of 6 bits out of twelve bytes.

    The low six bits of bytes 0 … 7 are four steps and four floors; bytes 8 … 11 hold the low
    nibbles of the other steps and floors, whose upper two bits are the upper two of bytes 0 … 7.
    """
    first, second, rest = np.split(packed, 3, axis=-1)
    upper = lambda four: four >> 6 << 4
    steps = np.concatenate([first & 63, rest & 0xF | upper(first)], axis=-1)
    floors = np.concatenate([second & 63, rest >> 4 | upper(second)], axis=-1)
    return steps, floors
