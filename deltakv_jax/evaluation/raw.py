"""What the cache-true rule forbids, on purpose: attention that reads what is not yet packed.

The published code changes its cache after a micro-batch has been computed, so that every token of
it attends to keys and values as they were before. A figure made like this says nothing about the
format: with a chunk in one piece all formats give the same.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from deltakv_jax.attention import RopeTables, apply_rope
from deltakv_jax.attention.centre import read_values, take_off
from deltakv_jax.attention.reference import attend_values
from deltakv_jax.cache import KVCache, write
from deltakv_jax.typed import typed


@typed
def attend_raw(
    layer: Int32[Array, ""] | int,
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t k d"],
    v: Float[Array, "b t k d"],
    rope: RopeTables,
    cache: KVCache,
    *,
    counts: Int32[Array, " b"],
) -> tuple[Float[Array, "b t h d"], KVCache]:
    """As `attention.attend`, but tokens of this call are read as they came, not as stored.

    Those before it are read as they are packed, without refinements.
    """
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)
    stored = read_values(cache, layer, rope.inverse)
    k_left, v_left, *_ = take_off(cache, layer, k, v, rope.inverse)
    cache = write(cache, layer, apply_rope(k_left, rope), v_left, counts)
    new = apply_rope(k, rope), v
    seen = (_overlaid(*pair, rope.positions) for pair in zip(stored, new, strict=True))
    queries = apply_rope(q.astype(jnp.float32), rope)
    return attend_values(queries, rope.positions, *seen).astype(q.dtype), cache


def _overlaid(stored: Array, new: Array, positions: Array) -> Array:
    """`stored` [b k s d] with `new` [b t k d] at its positions [b t]; beyond s they are dropped."""
    rows = jnp.arange(len(new))[:, None]
    return stored.at[rows, :, positions].set(new, mode="drop")
