"""Decode attention over a plain cache, in every form that XLA may like best.

A fair baseline needs several: XLA:CPU widens a whole bfloat16 array again in every iteration of a
loop that slices it, so one form may be 20 times slower than another, and which differs by machine.

All take q [b h d] in float32 and one layer's keys and values, and give float32 [b h d].
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

TILE = 512  # tokens
DTYPES = {"bf16": jnp.bfloat16, "f16": jnp.float16, "f32": jnp.float32}
LIBRARY = "dot_product_attention"


class Form(NamedTuple):
    """How keys and values [b s k d] are stored, and how that is attended to."""

    store: Callable[[Array], Array]
    attend: Callable[[Array, Array, Array], Array]


def _whole(axes: str, q: Array, keys: Array, values: Array) -> Array:
    """Two products over the whole cache, operands in its dtype, sums in float32."""
    kv_heads = keys.shape[axes.index("k")]
    grouped = (_grouped(q, kv_heads)).astype(keys.dtype)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(product(f"bkgd,{axes}->bkgs", grouped, keys), axis=-1)
    return product(f"bkgs,{axes}->bkgd", weights.astype(values.dtype), values).reshape(q.shape)


def _tiled(widen: Callable[[Array], Array], q: Array, keys: Array, values: Array) -> Array:
    """The running softmax over tiles of [b k s d], widened to float32 tile by tile."""
    grouped = _grouped(q, keys.shape[1])
    tile_of = lambda x, tile: widen(jax.lax.dynamic_slice_in_dim(x, tile * TILE, TILE, 2))

    def step(tile: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        m, l, acc = carry
        scores = jnp.einsum("bkgd,bksd->bkgs", grouped, tile_of(keys, tile))
        m_next = jnp.maximum(m, jnp.max(scores, axis=-1))
        shrink, p = jnp.exp(m - m_next), jnp.exp(scores - m_next[..., None])
        mixed = jnp.einsum("bkgs,bksd->bkgd", p, tile_of(values, tile))
        return m_next, l * shrink + jnp.sum(p, axis=-1), acc * shrink[..., None] + mixed

    rows = grouped.shape[:3]
    empty = jnp.full(rows, -jnp.inf), jnp.zeros(rows), jnp.zeros_like(grouped)
    _, l, acc = jax.lax.fori_loop(0, keys.shape[2] // TILE, step, empty)
    return (acc / l[..., None]).reshape(q.shape)


def _library(
    q: Array, keys: Array, values: Array, *, implementation: Literal["cudnn"] | None = None
) -> Array:
    """`jax.nn.dot_product_attention`, which takes [b s k d]."""
    rows = q[:, None].astype(keys.dtype)
    out = jax.nn.dot_product_attention(rows, keys, values, implementation=implementation)
    return out[:, 0].astype(q.dtype)


def _grouped(q: Array, kv_heads: int) -> Array:
    """[b k g d], scaled."""
    b, h, d = q.shape
    return q.reshape(b, kv_heads, h // kv_heads, d) * d**-0.5


def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


def _from_bits(x: Array) -> Array:
    """A bfloat16 is the upper half of a float32."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.uint32) << 16, jnp.float32)


def forms(dtype: str) -> dict[str, Form]:
    """Every form over a cache of one of `DTYPES` that this machine can run."""
    stored = DTYPES[dtype]
    plain = lambda x: x.astype(stored)
    if jax.default_backend() == "gpu":
        return _library_forms(plain, halves=stored != jnp.float32)
    rows = lambda x: plain(x).transpose(0, 2, 1, 3)
    columns = lambda x: plain(x).transpose(0, 2, 3, 1)
    found = {
        "einsum [b s k d]": Form(plain, partial(_whole, "bskd")),
        "einsum [b k s d]": Form(rows, partial(_whole, "bksd")),
        "einsum [b k d s]": Form(columns, partial(_whole, "bkds")),
        "tiles": Form(rows, partial(_tiled, lambda x: x.astype(jnp.float32))),
    }
    if stored == jnp.bfloat16:
        found["tiles of uint16"] = Form(lambda x: _bits(rows(x)), partial(_tiled, _from_bits))
    if stored != jnp.float16:  # XLA:CPU refuses its product
        found[LIBRARY] = Form(plain, _library)
    return found


def _library_forms(store: Callable[[Array], Array], *, halves: bool) -> dict[str, Form]:
    """What a GPU is compared with: the library's attention, and that of NVIDIA, which takes halves.

    Einsums would be compiled for minutes, to be slower.
    """
    found = {LIBRARY: Form(store, _library)}
    if halves:
        found[f"{LIBRARY} by cudnn"] = Form(store, partial(_library, implementation="cudnn"))
    return found
