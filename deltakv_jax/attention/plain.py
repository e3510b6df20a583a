"""Causal attention of a whole sequence to itself, without a cache.

What training runs, and the float32 forward pass that every cached path is compared with.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from deltakv_jax.attention.rope import RopeTables, apply_rope
from deltakv_jax.typed import typed


@typed
def attend_plain(
    layer: int | Int[Array, ""],
    q: Float[Array, "b t h d"],
    k: Float[Array, "b t k d"],
    v: Float[Array, "b t k d"],
    rope: RopeTables,
    cache: None = None,
) -> tuple[Float[Array, "b t h d"], None]:
    """softmax(q @ k.T / sqrt(d)) @ v over tokens 0 … t, in float32 (an `attend` of the model).

    Args:
      layer: not needed here; every `attend` is told it.
      q: queries before RoPE.
      k: keys before RoPE; h is a multiple of k.
      v: values.
      rope: the tables of the tokens' positions.
      cache: None.
    """
    del layer
    q = apply_rope(q.astype(jnp.float32), rope)
    k = apply_rope(k.astype(jnp.float32), rope)
    b, t, h, d = q.shape
    grouped = q.reshape(b, t, k.shape[2], -1, d) * d**-0.5
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, k, precision="highest")
    scores = jnp.where(jnp.tri(t, dtype=bool), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, v.astype(jnp.float32), precision="highest")
    return out.reshape(b, t, h, d), cache
