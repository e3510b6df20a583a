"""llama.cpp's block quantisation: 32 values along the last axis share one float16 scale.

x ≈ codes * scale (q8_0) or (codes - 8) * scale (q4_0). The codes agree with llama.cpp's bit for
bit, and with each other in whatever program they are computed: no product is left to be fused
with a sum that follows it (`rounded`), and a code times a float16 scale is exact in float32.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float16, Float32, Int8, UInt8

from deltakv_jax.codec.packing import BLOCK, join_planes, nibble_planes, pack_nibbles
from deltakv_jax.typed import typed


def rounded(product: Array, bound: float) -> Array:
    """`product`, rounded to float32 before anything else happens to it.

    A compiler may turn a * b + c into one fused operation in one program and not in another, and
    the rare code that then differs would make stored bytes depend on the program. A clip to a
    bound that the product never exceeds stands in the way of that.
    """
    return jnp.clip(product, -bound, bound)


def _blocks(x: Array) -> Array:
    return x.reshape(*x.shape[:-1], -1, BLOCK)


def _inverse(scale: Array) -> Array:
    """1 / scale, and 0 where the scale is 0."""
    return jnp.where(scale == 0, 0.0, 1.0 / jnp.where(scale == 0, 1.0, scale))


@typed
def quantize_q8_0(
    x: Float32[Array, "*lead d"],
) -> tuple[Int8[Array, "*lead d"], Float16[Array, "*lead blocks"]]:
    """Codes -127 … 127 and scales; scale = max abs / 127, rounded half away from zero."""
    blocks = _blocks(x)
    scale = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True) / 127
    scaled = rounded(blocks * _inverse(scale), 127.0)
    whole = jnp.floor(jnp.abs(scaled))
    whole = whole + jnp.floor(2 * (jnp.abs(scaled) - whole))
    codes = (jnp.sign(scaled) * whole).astype(jnp.int8)
    return codes.reshape(x.shape), scale[..., 0].astype(jnp.float16)


@typed
def dequantize_q8_0(
    codes: Int8[Array, "*lead d"], scales: Float16[Array, "*lead blocks"]
) -> Float32[Array, "*lead d"]:
    """Codes * scale."""
    values = _blocks(codes).astype(jnp.float32) * scales[..., None].astype(jnp.float32)
    return values.reshape(codes.shape)


@typed
def quantize_q4_0(
    x: Float32[Array, "*lead d"],
) -> tuple[UInt8[Array, "*lead half_d"], Float16[Array, "*lead blocks"]]:
    """Packed codes 0 … 15 and scales; scale = (first value of largest magnitude) / -8."""
    blocks = _blocks(x)
    largest = jnp.argmax(jnp.abs(blocks), axis=-1, keepdims=True)
    scale = jnp.take_along_axis(blocks, largest, axis=-1) / -8
    scaled = rounded(blocks * _inverse(scale), 8.0)
    codes = jnp.minimum(jnp.trunc(scaled + 8.5), 15).astype(jnp.uint8)
    return pack_nibbles(codes.reshape(x.shape)), scale[..., 0].astype(jnp.float16)


@typed
def dequantize_q4_0(
    packed: UInt8[Array, "*lead half_d"], scales: Float16[Array, "*lead blocks"]
) -> Float32[Array, "*lead d"]:
    """(codes - 8) * scale."""
    return join_planes(*dequantize_q4_0_planes(packed, scales))


@typed
def dequantize_q4_0_planes(
    packed: UInt8[Array, "*lead half_d"], scales: Float16[Array, "*lead blocks"]
) -> tuple[Float32[Array, "*lead half_d"], Float32[Array, "*lead half_d"]]:
    """(codes - 8) * scale in two planes, as the codes lie in the bytes."""
    scale = scales[..., None].astype(jnp.float32)

    def values(codes: Array) -> Array:
        blocks = codes.reshape(*scales.shape, -1).astype(jnp.int8) - 8
        return (blocks.astype(jnp.float32) * scale).reshape(codes.shape)

    low, high = nibble_planes(packed)
    return values(low), values(high)
