"""The float32 reference: reconstruct everything, then attend. The specification of `tiled`."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from deltakv_jax.attention.centre import rotated_mean
from deltakv_jax.cache import ALONE, KVCache, Near, Step, near_in, read
from deltakv_jax.codec import Format, KVSpec, Planes
from deltakv_jax.codec.hadamard import rotate
from deltakv_jax.typed import typed


@typed
def attend_reference(
    q: Float32[Array, "b t h d"],
    positions: Int32[Array, "b t"],
    cache: KVCache,
    layer: Int32[Array, ""] | int,
    step: Step = ALONE,
) -> Float32[Array, "b t h d"]:
    """softmax(q @ k.T / sqrt(d)) @ v over the stored tokens 0 … positions, in float32.

    Args:
      q: queries after RoPE.
      positions: of each query; its own token is already written.
      cache: the cache.
      layer: the layer to read.
      step: what else is known of the step.
    """
    kind_of, row = cache.layout.find(layer)
    branches = [partial(_attend_kind, kind, cache, step) for kind in range(len(cache.stacks))]
    return jax.lax.switch(kind_of, branches, row, layer, q, positions)


def _attend_kind(
    kind: int, cache: KVCache, step: Step, row: Array, layer: Array, q: Array, positions: Array
) -> Array:
    k, v = read(cache, layer)
    if step.centre is not None:
        tokens = jnp.broadcast_to(jnp.arange(k.shape[2], dtype=jnp.int32), (len(k), k.shape[2]))
        k = k + rotated_mean(step.centre, tokens)
    near = near_in(cache, kind, row, positions, step)
    if near is None:
        return attend_values(q, positions, k, v)
    spec = cache.layout.kinds[kind]
    keys, values = (_joined(side, planes) for side, planes in _sides(near, spec))
    if step.centre is not None:
        keys = keys + rotated_mean(step.centre, near.tokens)
    return _attend_pairs(q, positions, (k, v), (keys, values), near)


def _sides(near: Near, spec: KVSpec) -> tuple[tuple[Format, Planes], tuple[Format, Planes]]:
    return (spec.k, near.k), (spec.v, near.v)


def _joined(side: Format, planes: Planes) -> Array:
    """In the frame of the values."""
    return rotate(side.join(planes)) if side.rotate else side.join(planes)


def _attend_pairs(
    q: Array,
    positions: Array,
    packed: tuple[Array, Array],
    refined: tuple[Array, Array],
    near: Near,
) -> Array:
    """Over all that is packed, but for what each query reads refined."""
    s = jnp.arange(packed[0].shape[2])
    t = positions[..., None]
    far = (s <= t - near.window) & (s >= near.sinks)
    keys, values = (jnp.concatenate(pair, axis=2) for pair in zip(packed, refined, strict=True))
    return _attend_seen(q, jnp.concatenate([far, near.seen(positions)], axis=-1), keys, values)


@typed
def attend_values(
    q: Float32[Array, "b t h d"],
    positions: Int32[Array, "b t"],
    k: Float32[Array, "b k s d"],
    v: Float32[Array, "b k s d"],
) -> Float32[Array, "b t h d"]:
    """The same over keys and values that are at hand."""
    return _attend_seen(q, jnp.arange(k.shape[2]) <= positions[..., None], k, v)


def _attend_seen(q: Array, seen: Array, k: Array, v: Array) -> Array:
    """Over the keys that each query sees, bool [b t s]."""
    b, t, h, d = q.shape
    grouped = q.reshape(b, t, k.shape[1], -1, d)
    scores = jnp.einsum("btkgd,bksd->bkgts", grouped, k, precision="highest") * d**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bkgts,bksd->btkgd", weights, v, precision="highest").reshape(b, t, h, d)
