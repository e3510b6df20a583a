"""Four bytes in a word of 32 bits: how they get there, and products of two words, byte by byte.

GPUs multiply the four signed bytes of two words and add the products to an integer in a single
instruction, which compilers do not find: it is written here as assembly. Plain JAX, for devices
without it and for interpretation, gives the same bits.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int8, Int32, UInt8

from deltakv_jax.codec.matrix import Field
from deltakv_jax.typed import typed
from deltakv_pallas.lowering import assembly, device_kind

NVIDIA, AMD = "NVIDIA", "gfx9"
"""How the kinds of devices begin that have assembly here."""

_EACH = 0x01010101
"""The byte 1 in each place of a word."""

_GATHER = """{
.reg .b32 a, b, c, d;
prmt.b32 a, $4, $5, 0x5140;
prmt.b32 b, $6, $7, 0x5140;
prmt.b32 c, $4, $5, 0x7362;
prmt.b32 d, $6, $7, 0x7362;
prmt.b32 $0, a, b, 0x5410;
prmt.b32 $1, a, b, 0x7632;
prmt.b32 $2, c, d, 0x5410;
prmt.b32 $3, c, d, 0x7632;
}"""
"""Of four words `$4` … `$7` the first bytes to `$0`, the second ones to `$1` and so on."""


def family(*, interpret: bool) -> str | None:
    """The maker whose assembly the device takes that is compiled for; None for plain JAX."""
    kind = "" if interpret else device_kind()
    return next((maker for maker in (NVIDIA, AMD) if kind.startswith(maker)), None)


@typed
def gather(
    four: Sequence[UInt8[Array, "*shape"] | Int8[Array, "*shape"]], maker: str | None
) -> Int32[Array, "*shape"]:
    """Words of the bytes of four arrays, those of the first one lowest."""
    if maker == NVIDIA:
        return assembly(_GATHER, four, jnp.int32, pack=4)
    a, b, c, d = (x.astype(jnp.uint8).astype(jnp.int32) for x in four)
    return a | b << 8 | c << 16 | d << 24


@typed
def codes(field: Field, words: Mapping[str, Int32[Array, "*shape"]]) -> Int32[Array, "*shape"]:
    """The codes of a part in words, as `Field.codes` gives them in bytes."""
    packed = words[field.leaf]
    if field.shift is None:
        return packed
    nibbles = packed >> field.shift & 0xF * _EACH
    if not field.high:
        return nibbles
    high, shift = words["high"], field.high_shift
    return nibbles | (high << shift if shift > 0 else high >> -shift) & field.high * _EACH


@typed
def dot4(
    a: Int32[Array, "*shape"],
    b: Int32[Array, "*shape"],
    total: Int32[Array, "*shape"],
    maker: str | None,
) -> Int32[Array, "*shape"]:
    """Adds the products of the signed bytes of a and b to a total."""
    if maker == NVIDIA:
        return assembly("dp4a.s32.s32 $0, $1, $2, $3;", [a, b, total], jnp.int32)
    if maker == AMD:
        return assembly("v_dot4_i32_i8 $0, $1, $2, $3", [a, b, total], jnp.int32, register="v")
    for shift in (24, 16, 8, 0):
        total = total + (a << shift >> 24) * (b << shift >> 24)
    return total
