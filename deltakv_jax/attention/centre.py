"""The mean of each channel, which some formats take off before they store.

Of keys it is taken off before RoPE, where channels have one, and its share of a score is added
when the cache is read: q.R_s m, R_s the rotation of position s. Per pair of channels that is
A cos(s w) + B sin(s w) with A = q.m and B = q x m, w the inverse frequency: as many products as
q.k, of numbers that need no unpacking. Of values the mean is added to the output, as the weights
add up to 1.

Letters: r query rows of a kv head, s stored tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from deltakv_jax.attention.rope import apply_rope, tables_of
from deltakv_jax.cache import KeyCentre, KVCache, read
from deltakv_jax.typed import typed

_RUN = 256  # tokens whose rotations, from the first of them on, are constants of a program


def is_centred(cache: KVCache) -> bool:
    """Whether any layer takes means off."""
    return any(kind.k.centre or kind.v.centre for kind in cache.layout.kinds)


@typed
def means(
    cache: KVCache, layer: Int32[Array, ""] | int
) -> tuple[Float32[Array, "b k d"], Float32[Array, "b k d"]]:
    """The means of K before RoPE and of V that were taken off in this layer; zero if none were."""
    kind_of, row = cache.layout.find(layer)
    batch, kv_heads = jax.tree.leaves(cache.stacks)[0].shape[1:3]
    none = jnp.zeros((batch, kv_heads, cache.head_dim))

    def of(kind: int, row: Array) -> tuple[Array, Array]:
        centre = cache.stacks[kind].centre
        take = lambda leaves: leaves["mean"][row][:, :, 0].astype(jnp.float32) if leaves else none
        return take(centre.k), take(centre.v)

    branches = [lambda row, kind=kind: of(kind, row) for kind in range(len(cache.stacks))]
    return jax.lax.switch(kind_of, branches, row)


@typed
def take_off(
    cache: KVCache,
    layer: Int32[Array, ""] | int,
    k: Float32[Array, "b t k d"],
    v: Float32[Array, "b t k d"],
    inverse: Float32[Array, " half_d"],
) -> tuple[Array, Array, KeyCentre | None, Array | None]:
    """Keys before RoPE and values less what this layer takes off, and that; None for nothing."""
    if not is_centred(cache):
        return k, v, None, None
    k_mean, v_mean = means(cache, layer)
    return k - k_mean[:, None], v - v_mean[:, None], KeyCentre(k_mean, inverse), v_mean


@typed
def rotated_mean(centre: KeyCentre, tokens: Int32[Array, "b s"]) -> Float32[Array, "b k s d"]:
    """The mean as keys of these tokens have it."""
    every = jnp.broadcast_to(centre.mean[:, None], (*tokens.shape, *centre.mean.shape[1:]))
    return jnp.swapaxes(apply_rope(every, tables_of(tokens, centre.inverse)), 1, 2)


@typed
def centre_scores(
    rows: Float32[Array, "b k r d"], centre: KeyCentre, start: Int32[Array, ""], size: int
) -> Float32[Array, "b k r size"]:
    """The mean's share of the scores of rows, after RoPE, for `size` tokens from `start` on.

    Each run of tokens has its first one's rotation put into A and B, and one table for the rest.
    """
    first, second = jnp.split(rows, 2, axis=-1)
    mean = centre.mean[:, :, None]
    one, two = jnp.split(mean, 2, axis=-1)
    a, b = first * one + second * two, second * one - first * two
    runs = -(-size // _RUN)
    angles = (start + _RUN * jnp.arange(runs)).astype(jnp.float32)[:, None] * centre.inverse
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = a[..., None, :], b[..., None, :]
    at_run = jnp.concatenate([a * cos + b * sin, b * cos - a * sin], axis=-1)  # [b k r runs d]
    shares = jnp.einsum("bkrnd,td->bkrnt", at_run, _table(centre.inverse), precision="highest")
    return shares.reshape(*rows.shape[:3], -1)[..., :size]


def _table(inverse: Array) -> Array:
    """[t d]: the cosines and sines of a run."""
    angles = np.arange(_RUN, dtype=np.float32)[:, None] * inverse
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@typed
def read_values(
    cache: KVCache, layer: Int32[Array, ""] | int, inverse: Float32[Array, " half_d"]
) -> tuple[Float32[Array, "b k s d"], Float32[Array, "b k s d"]]:
    """K and V of one layer as `cache.read` has them, the means added."""
    k, v = read(cache, layer)
    if not is_centred(cache):
        return k, v
    k_mean, v_mean = means(cache, layer)
    tokens = jnp.broadcast_to(jnp.arange(k.shape[2], dtype=jnp.int32), (len(k), k.shape[2]))
    return k + rotated_mean(KeyCentre(k_mean, inverse), tokens), v + v_mean[:, :, None]
