"""Packing of 4-bit codes into bytes, and back.

Planar within a block of 32: byte j of a block holds code j in its low and code j + 16 in its
high nibble, as llama.cpp's q4_0 has them, so that unpacking needs no interleaving.
"""

import jax.numpy as jnp
from jaxtyping import Array, UInt8

from deltakv_jax.typed import typed

BLOCK = 32
_HALF = BLOCK // 2


@typed
def pack_nibbles(codes: UInt8[Array, "*lead d"]) -> UInt8[Array, "*lead half_d"]:
    """Packs codes 0 … 15 two to a byte; d must be a multiple of 32."""
    low, high = jnp.split(codes.reshape(*codes.shape[:-1], -1, BLOCK), 2, axis=-1)
    return (low | high << 4).reshape(*codes.shape[:-1], -1)


@typed
def unpack_nibbles(packed: UInt8[Array, "*lead half_d"]) -> UInt8[Array, "*lead d"]:
    """The codes 0 … 15 of `pack_nibbles`."""
    blocks = packed.reshape(*packed.shape[:-1], -1, 1, _HALF)
    planes = blocks >> jnp.array([[0], [4]], jnp.uint8) & 0xF
    return planes.reshape(*packed.shape[:-1], -1)
