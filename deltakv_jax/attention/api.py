"""One function that rotates, writes and reads: the `attend` that a model is given."""

import functools
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from deltakv_jax.attention.centre import take_off
from deltakv_jax.attention.reference import attend_reference
from deltakv_jax.attention.rope import RopeTables, apply_rope
from deltakv_jax.attention.tiled import attend_tiled
from deltakv_jax.cache import KVCache, Step, write_and_refine
from deltakv_jax.typed import typed
from deltakv_pallas.decode import attend_pallas, timed_here

Implementation = Literal["xla", "pallas", "pallas-interpret", "reference"]

READERS = {
    "xla": attend_tiled,
    "pallas": attend_pallas,
    "pallas-interpret": functools.partial(attend_pallas, interpret=True),
    "reference": attend_reference,
}
"""What reads the cache: (queries after RoPE, their positions, cache, layer, step) -> output."""


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
    implementation: Implementation | None = None,
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
      implementation: "xla" reads packed tiles in plain JAX, "pallas" is the GPU kernel,
        "pallas-interpret" the same as plain JAX, and "reference" reconstructs everything. None
        takes the kernel for a single token where it was timed on this device, or else "xla".

    Returns:
      The attention output in q's dtype, and the cache with the tokens written.
    """
    read = READERS[implementation or _suited(q, k, cache)]
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)
    k, v, centre, v_mean = take_off(cache, layer, k, v, rope.inverse)
    cache, refined = write_and_refine(cache, layer, apply_rope(k, rope), v, counts)
    step = Step(refined if q.shape[1] > 1 else None, centre)
    out = read(apply_rope(q.astype(jnp.float32), rope), rope.positions, cache, layer, step)
    return _with_mean(out, v_mean).astype(q.dtype), cache


def _with_mean(out: Array, mean: Array | None) -> Array:
    """The output [b t h d] with the mean of the values [b k d] of each head."""
    if mean is None:
        return out
    return out + jnp.repeat(mean, out.shape[2] // mean.shape[1], axis=1)[:, None]


def _suited(q: Array, k: Array, cache: KVCache) -> Implementation:
    """What is known to be fast here."""
    one_token = q.shape[1] == 1
    return "pallas" if one_token and timed_here(cache, q.shape[2] // k.shape[2]) else "xla"
