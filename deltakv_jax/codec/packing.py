"""Packing of codes of 4, 2 and 1 bits, and back.

The bytes of q4_0's codes are llama.cpp's: byte j of a block of 32 holds code j in its low and code
j + 16 in its high nibble. They are kept two to a word, the first in the low half, since a GPU
turns 16-bit numbers into matrix operands without taking them apart. Nibble p of all words of a row
is a plane, and planes need no interleaving: q.x is the sum of the products of q's planes with x's.

Codes in quarters lie further apart: word j of a row of d holds the codes j, j + d/4, j + d/2 and
j + 3d/4, from its low end on, so that a plane is a quarter of the row.
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
def pack_quarters(codes: UInt8[Array, "*lead d"], bits: int) -> Shaped[Array, "*lead words"]:
    """Packs codes of 4 bits in words of 16, and of 2 or 1 bits in bytes; 4 must divide d."""
    word = jnp.uint16 if bits == 4 else jnp.uint8
    quarters = jnp.split(codes.astype(word), PLANES, axis=-1)
    shifted = (quarter << bits * place for place, quarter in enumerate(quarters))
    return functools.reduce(jnp.bitwise_or, shifted)


@typed
def quarters(words: Shaped[Array, "*lead words"], bits: int) -> Planes:
    """The codes of `pack_quarters`, in planes that are the quarters of the row."""
    return tuple(words >> bits * place & (1 << bits) - 1 for place in range(PLANES))


@typed
def pack_halves(codes: UInt8[Array, "*lead d"]) -> UInt8[Array, "*lead bytes"]:
    """Packs codes 0 … 15 two to a byte, the first half of the row in the low nibbles."""
    low, high = jnp.split(codes, 2, axis=-1)
    return low | high << 4


@typed
def halves(packed: UInt8[Array, "*lead bytes"]) -> UInt8[Array, "*lead d"]:
    """The inverse of `pack_halves`."""
    return jnp.concatenate([packed & 15, packed >> 4], axis=-1)
