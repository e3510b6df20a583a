"""One function that rotates, writes and reads: the `attend` that a model is given."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from deltakv_jax.attention.reference import attend_reference
from deltakv_jax.attention.rope import RopeTables, apply_rope
from deltakv_jax.attention.tiled import attend_tiled
from deltakv_jax.cache import KVCache, write
from deltakv_jax.typed import typed

Implementation = Literal["xla", "reference"]


@typed
def attend(
    layer: Int32[Array, ""] | int,
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t k d"],
    v: Float[Array, "b t k d"],
    rope: RopeTables,
    cache: KVCache,
    *,
    counts: Int32[Array, " b"],
    implementation: Implementation = "xla",
) -> tuple[Float[Array, "b t h d"], KVCache]:
    """Writes the tokens of a step to one layer, then attends to what the cache holds.

    Cache-true: token t reads tokens 0 … t, its own included, as they are stored.

    Args:
      layer: the layer, which may be traced.
      q: queries before RoPE.
      k: keys before RoPE.
      v: values.
      rope: tables of the tokens' positions, which go on from `cache.lengths`.
      cache: the cache; its lengths are advanced later, once for all layers.
      counts: tokens of each sequence that are not padding.
      implementation: "xla" reads packed tiles, "reference" reconstructs everything.

    Returns:
      The attention output in q's dtype, and the cache with the tokens written.
    """
    keys = apply_rope(k.astype(jnp.float32), rope)
    cache = write(cache, layer, keys, v, counts)
    queries = apply_rope(q.astype(jnp.float32), rope)
    read = {"xla": attend_tiled, "reference": attend_reference}[implementation]
    return read(queries, rope.positions, cache, layer).astype(q.dtype), cache
