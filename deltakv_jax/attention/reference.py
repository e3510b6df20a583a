"""The float32 reference: reconstruct everything, then attend. The specification of `tiled`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from deltakv_jax.cache import KVCache, read
from deltakv_jax.typed import typed


@typed
def attend_reference(
    q: Float32[Array, "b t h d"],
    positions: Int32[Array, "b t"],
    cache: KVCache,
    layer: Int32[Array, ""] | int,
) -> Float32[Array, "b t h d"]:
    """softmax(q @ k.T / sqrt(d)) @ v over the stored tokens 0 … positions, in float32.

    Args:
      q: queries after RoPE.
      positions: of each query; its own token is already written.
      cache: the cache.
      layer: the layer to read.
    """
    return attend_values(q, positions, *read(cache, layer))


@typed
def attend_values(
    q: Float32[Array, "b t h d"],
    positions: Int32[Array, "b t"],
    k: Float32[Array, "b k s d"],
    v: Float32[Array, "b k s d"],
) -> Float32[Array, "b t h d"]:
    """The same over keys and values that are at hand."""
    b, t, h, d = q.shape
    grouped = q.reshape(b, t, k.shape[1], -1, d)
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, k, precision="highest") * d**-0.5
    seen = jnp.arange(k.shape[2]) <= positions[:, None, None, :, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bkgts,bksd->btkgd", weights, v, precision="highest").reshape(b, t, h, d)
