"""Packed codes as float16 numbers, which matrix units multiply.

A float16 whose bits are 0x6400 + code is 1024 + code, so a code needs one logical operation and
one subtraction, two codes at a time, where a conversion takes several instructions for each. Only
assembly says so to NVIDIA's compiler; other devices, and interpretation, take plain JAX.

Triton may move a value to another thread before or after the assembly, so each result depends on
its own word alone.
"""

import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.codec import Planes, Unpack
from deltakv_jax.codec.packing import nibble_planes
from deltakv_pallas.lowering import assembly, device_kind

_NIBBLE = """{{
.reg .b32 t, k, h;
mov.b32 k, 0x64006400;
shr.u32 t, $1, {shift};
lop3.b32 $0, t, 0x{mask:08X}, k, 0xEA;
{centre}
}}"""

_LOW = "mov.b32 k, 0x64086408;\nsub.f16x2 $0, $0, k;"
"""1024 + code, less 1032."""

_HIGH = "mov.b32 k, 0xD480D480;\nmov.b32 h, 0x2C002C00;\nfma.rn.f16x2 $0, $0, h, k;"
"""1024 + 16 code, over 16, less 72."""

_BYTES = """{
.reg .b32 t, k;
xor.b32 t, $2, 0x80808080;
prmt.b32 $0, t, 0x64646464, 0x4140;
prmt.b32 $1, t, 0x64646464, 0x4342;
mov.b32 k, 0x64806480;
sub.f16x2 $0, $0, k;
sub.f16x2 $1, $1, k;
}"""
"""1024 + 128 + code, less 1152."""


_ODD = "mov.b32 k, 0x3C003C00;\nmov.b32 h, 0x40004000;\nfma.rn.f16x2 $0, $0, h, k;"
"""Behind either: times 2, plus 1. No float16 near 1024 has the half that would spare this."""


def unpacking(*, interpret: bool) -> Unpack:
    """How the device that is compiled for turns codes into float16."""
    return _PTX if device_kind().startswith("NVIDIA") and not interpret else _PLAIN


def _nibbles(words: Array, then: str = "") -> Planes:
    masks = ((0x000F000F, _LOW), (0x00F000F0, _HIGH))
    texts = (
        _NIBBLE.format(shift=shift, mask=mask, centre=f"{centre}\n{then}")
        for shift in (0, 8)
        for mask, centre in masks
    )
    return tuple(assembly(text, [words], jnp.float16, pack=2) for text in texts)


def _odd_nibbles(words: Array) -> Planes:
    return _nibbles(words, _ODD)


def _integers(codes: Array) -> Array:
    return assembly(_BYTES, [codes], jnp.float16, pack=4)


def _plain_nibbles(words: Array) -> Planes:
    return tuple((x.astype(jnp.int16) - 8).astype(jnp.float16) for x in nibble_planes(words))


def _plain_odd_nibbles(words: Array) -> Planes:
    return tuple((x.astype(jnp.int16) * 2 - 15).astype(jnp.float16) for x in nibble_planes(words))


def _part(parts: Array, place: int) -> Array:
    """Part of a small axis, summed out as Triton cannot slice."""
    here = jnp.arange(parts.shape[-2])[:, None] == place
    return jnp.sum(jnp.where(here, parts, 0), axis=-2)


_PTX = Unpack(_nibbles, _odd_nibbles, _integers, _part)
_PLAIN = Unpack(_plain_nibbles, _plain_odd_nibbles, lambda codes: codes.astype(jnp.float16), _part)
