"""Packing of codes of 4, 2 and 1 bits, and back.

The bytes of q4_0's codes are llama.cpp's: byte j of a block of 32 holds code j in its low and code
j + 16 in its high nibble. They are kept two to a word, the first in the low half, since a GPU
turns 16-bit numbers into matrix operands without taking them apart. Nibble p of all words of a row
is a plane, and planes need no interleaving: q.x is the sum of the products of q's planes with x's.

Codes in parts lie further apart: of p parts of a row of d, word j holds the codes j, j + d/p,
j + 2d/p …, from its low end on, so that a plane is a part of the row.
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
def pack_parts(codes: UInt8[Array, "*lead d"], count: int, bits: int) -> Shaped[Array, "*lead n"]:
    """Packs the codes of so many bits of `count` equal parts of a row, one of each part to a word.

    A word has count * bits bits, 8 or 16.
    """
    word = jnp.uint16 if count * bits == 16 else jnp.uint8
    parts = jnp.split(codes.astype(word), count, axis=-1)
    return functools.reduce(jnp.bitwise_or, (part << bits * i for i, part in enumerate(parts)))


@typed
def parts(words: Shaped[Array, "*lead n"], count: int, bits: int) -> Planes:
    """The codes of `pack_parts`, in planes that are the parts of the row."""
    return tuple(words >> bits * place & (1 << bits) - 1 for place in range(count))
