"""Packing of 4-bit codes into bytes, and back.

Planar within a block of 32: byte j of a block holds code j in its low and code j + 16 in its
high nibble, as llama.cpp's q4_0 has them. So the low nibbles of a row, and the high ones, are two
planes that need no interleaving: q.x is the sum of the products of q's planes with x's.
"""

import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt8

from deltakv_jax.typed import typed

BLOCK = 32
_HALF = BLOCK // 2


@typed
def pack_nibbles(codes: UInt8[Array, "*lead d"]) -> UInt8[Array, "*lead half_d"]:
    """Packs codes 0 … 15 two to a byte; d must be a multiple of 32."""
    low, high = split_planes(codes)
    return low | high << 4


@typed
def nibble_planes(
    packed: UInt8[Array, "*lead half_d"],
) -> tuple[UInt8[Array, "*lead half_d"], UInt8[Array, "*lead half_d"]]:
    """The codes 0 … 15 of `pack_nibbles` in two planes, as they lie in the bytes."""
    return packed & 0xF, packed >> 4


@typed
def split_planes(
    x: Shaped[Array, "*lead d"],
) -> tuple[Shaped[Array, "*lead half_d"], Shaped[Array, "*lead half_d"]]:
    """The first and the second half of every block of 32, as the planes have them."""
    halves = x.reshape(*x.shape[:-1], -1, 2, _HALF)
    flat = (*x.shape[:-1], x.shape[-1] // 2)
    return halves[..., 0, :].reshape(flat), halves[..., 1, :].reshape(flat)


@typed
def join_planes(
    low: Shaped[Array, "*lead half_d"], high: Shaped[Array, "*lead half_d"]
) -> Shaped[Array, "*lead d"]:
    """The inverse of `split_planes`."""
    blocks = lambda plane: plane.reshape(*plane.shape[:-1], -1, _HALF)
    both = jnp.concatenate([blocks(low), blocks(high)], axis=-1)
    return both.reshape(*low.shape[:-1], -1)
