"""Packing of codes of 4, 2 and 1 bits, and back.

The bytes of 4-bit codes are llama.cpp's q4_0: byte j of a block of 32 holds code j in its low and
code j + 16 in its high nibble. They are kept two to a word, the first in the low half, since a GPU
turns 16-bit numbers into matrix operands without taking them apart. Nibble p of all words of a row
is a plane, and planes need no interleaving: q.x is the sum of the products of q's planes with x's.

Byte j of a block of 32 holds the 2-bit codes j, j + 8, j + 16 and j + 24, from its low end on, or
the bits j, j + 4, … j + 28.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt8, UInt16

from deltakv_jax.typed import typed

BLOCK = 32
_HALF = BLOCK // 2
_WORDS = BLOCK // 4  # of a block
PLANES = 4

Planes = tuple[Array, ...]
"""Arrays whose last axes together are head_dim, in the order in which it is unpacked."""


@typed
def pack_nibbles(codes: UInt8[Array, "*lead d"]) -> UInt16[Array, "*lead words"]:
    """Packs codes 0 … 15 four to a word; d must be a multiple of 32."""
    planes = (plane.astype(jnp.uint16) for plane in split_planes(codes))
    first, second, third, fourth = planes
    return first | second << 4 | third << 8 | fourth << 12


@typed
def centred_nibbles(words: UInt16[Array, "*lead words"]) -> Planes:
    """The codes of `pack_nibbles` less 8, float32, in planes."""
    return tuple((code.astype(jnp.int16) - 8).astype(jnp.float32) for code in nibble_planes(words))


@typed
def odd_nibbles(words: UInt16[Array, "*lead words"]) -> Planes:
    """Twice the codes of `pack_nibbles` less 15, float32, in planes."""
    codes = nibble_planes(words)
    return tuple((code.astype(jnp.int16) * 2 - 15).astype(jnp.float32) for code in codes)


@typed
def nibble_planes(words: UInt16[Array, "*lead words"]) -> Planes:
    """The codes 0 … 15 of `pack_nibbles`, uint16, in planes."""
    return tuple(words >> 4 * plane & 0xF for plane in range(PLANES))


@typed
def split_planes(x: Shaped[Array, "*lead d"]) -> Planes:
    """The values of each plane: values 2i, 2i + 16, 2i + 1 and 2i + 17 of every block."""
    pairs = x.reshape(*x.shape[:-1], -1, 2, _WORDS, 2)
    flat = (*x.shape[:-1], x.shape[-1] // PLANES)
    return tuple(pairs[..., half, :, odd].reshape(flat) for odd in (0, 1) for half in (0, 1))


@typed
def join_planes(*planes: Shaped[Array, "*lead words"]) -> Shaped[Array, "*lead d"]:
    """The inverse of `split_planes`."""
    blocks = [plane.reshape(*plane.shape[:-1], -1, _WORDS) for plane in planes]
    halves = [jnp.stack(blocks[half::2], axis=-1) for half in (0, 1)]
    return jnp.stack(halves, axis=-3).reshape(*planes[0].shape[:-1], -1)


@typed
def pack_fields(codes: UInt8[Array, "*lead d"], bits: int) -> UInt8[Array, "*lead bytes"]:
    """Packs codes of 2 bits, or of 1, as many to a byte as fit; d must be a multiple of 32."""
    fields = split_runs(codes, 8 // bits)
    shifted = (field << bits * place for place, field in enumerate(fields))
    return functools.reduce(jnp.bitwise_or, shifted)


@typed
def field_planes(packed: UInt8[Array, "*lead bytes"], bits: int) -> Planes:
    """The codes of `pack_fields`, uint8, in planes as `split_runs` has them."""
    return tuple(packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits))


@typed
def split_runs(x: Shaped[Array, "*lead d"], count: int) -> Planes:
    """Each block of 32 in `count` runs of neighbours, and the runs of each place in a plane."""
    runs = x.reshape(*x.shape[:-1], -1, count, BLOCK // count)
    flat = (*x.shape[:-1], x.shape[-1] // count)
    return tuple(runs[..., place, :].reshape(flat) for place in range(count))


@typed
def join_runs(*planes: Shaped[Array, "*lead run"]) -> Shaped[Array, "*lead d"]:
    """The inverse of `split_runs`."""
    size = BLOCK // len(planes)
    runs = [plane.reshape(*plane.shape[:-1], -1, size) for plane in planes]
    return jnp.stack(runs, axis=-2).reshape(*planes[0].shape[:-1], -1)


@typed
def with_high_bits(
    low: UInt8[Array, "*lead quarter"], high: UInt8[Array, "*lead eighth"]
) -> Planes:
    """Codes of 3 bits, of which two lie in `low` and one in `high`, in 8 planes."""
    halves = low.reshape(*low.shape[:-1], -1, 2, BLOCK // 8)
    runs = [halves[..., half, :].reshape(high.shape) for half in (0, 1)]
    return tuple(
        runs[place % 2] >> 2 * (place // 2) & 3 | (high >> place & 1) << 2 for place in range(8)
    )
