"""llama.cpp's block quantisation: 32 values along the last axis share one float16 scale.

x ≈ codes * scale (q8_0) or (codes - 8) * scale (q4_0). The codes agree with llama.cpp's bit for
bit, and with each other in whatever program they are computed: no product is left to be fused
with a sum that follows it (`rounded`), and a code times a float16 scale is exact in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float16, Float32, Int8, UInt16

from deltakv_jax.codec.packing import BLOCK, Planes, centred_nibbles, join_planes, pack_nibbles
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
    steps = rounded(blocks * _inverse(scale), 127.0)
    whole = jnp.floor(jnp.abs(steps))
    whole = whole + jnp.floor(2 * (jnp.abs(steps) - whole))
    codes = (jnp.sign(steps) * whole).astype(jnp.int8)
    return codes.reshape(x.shape), scale[..., 0].astype(jnp.float16)


@typed
def dequantize_q8_0(
    codes: Int8[Array, "*lead d"], scales: Float16[Array, "*lead blocks"]
) -> Float32[Array, "*lead d"]:
    """Codes * scale."""
    return scaled(codes.astype(jnp.float32), scales)


@typed
def scaled(
    numbers: Float[Array, "*lead width"], scales: Float[Array, "*lead blocks"]
) -> Float[Array, "*lead width"]:
    """Numbers times the scales of their blocks, in the dtype of the numbers."""
    blocks = numbers.reshape(*scales.shape, -1)
    return (blocks * scales[..., None].astype(numbers.dtype)).reshape(numbers.shape)


Words = tuple[UInt16[Array, "*lead words"], Float16[Array, "*lead blocks"]]
"""Packed codes 0 … 15, and scales."""


@typed
def quantize_q4_0(x: Float32[Array, "*lead d"]) -> Words:
    """Codes by scale = (first value of largest magnitude) / -8."""
    blocks = _blocks(x)
    scale = _scale(blocks)
    return _codes(blocks, scale), scale[..., 0].astype(jnp.float16)


@typed
def quantize_short_q4_0(x: Float32[Array, "*lead d"]) -> Words:
    """The same with scales of 8 significant bits, by which the codes are chosen.

    A code times such a scale is a float16 without rounding, so that what multiplies in float16
    sums a chain of differences as exactly as float32 does.
    """
    blocks = _blocks(x)
    scale = _shortened(_scale(blocks).astype(jnp.float16))
    return _codes(blocks, scale.astype(jnp.float32)), scale[..., 0]


def _scale(blocks: Array) -> Array:
    largest = jnp.argmax(jnp.abs(blocks), axis=-1, keepdims=True)
    return jnp.take_along_axis(blocks, largest, axis=-1) / -8


def _codes(blocks: Array, scale: Array) -> Array:
    steps = rounded(blocks * _inverse(scale), 9.0)
    codes = jnp.clip(jnp.trunc(steps + 8.5), 0, 15).astype(jnp.uint8)
    return pack_nibbles(codes.reshape(*blocks.shape[:-2], -1))


def _shortened(scales: Array) -> Array:
    """Float16 numbers rounded to 8 significant bits; infinities and NaN as they are."""
    bits = jax.lax.bitcast_convert_type(scales, jnp.uint16)
    magnitude, largest = bits & 0x7FFF, jnp.uint16(0x7BF8)
    short = jnp.minimum((magnitude + 4) & 0x7FF8, largest) | bits & 0x8000
    finite = magnitude < 0x7C00
    return jax.lax.bitcast_convert_type(jnp.where(finite, short, bits), jnp.float16)


@typed
def dequantize_q4_0(
    words: UInt16[Array, "*lead words"], scales: Float16[Array, "*lead blocks"]
) -> Float32[Array, "*lead d"]:
    """(codes - 8) * scale."""
    return join_planes(*dequantize_q4_0_planes(words, scales))


@typed
def dequantize_q4_0_planes(
    words: UInt16[Array, "*lead words"],
    scales: Float16[Array, "*lead blocks"],
    nibbles: Callable[[Array], Planes] = centred_nibbles,
) -> Planes:
    """(codes - 8) * scale in planes, in the dtype in which `nibbles` gives the codes less 8."""
    return tuple(scaled(plane, scales) for plane in nibbles(words))
