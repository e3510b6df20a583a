"""More room for a cache that is not empty."""

import dataclasses

import jax
import jax.numpy as jnp

from deltakv_jax.cache.state import KVCache, make_cache


def grow(cache: KVCache, capacity: int) -> KVCache:
    """`cache` with room for `capacity` tokens per sequence, or its own if that is more.

    It equals, bit for bit, a cache of that capacity that was given the same tokens.
    """
    if capacity <= cache.capacity:
        return cache
    _, batch, kv_heads = jax.tree.leaves(cache.stacks)[0].shape[:3]
    larger = make_cache(
        [cache.layout.kinds[kind] for kind in cache.layout.kind_of],
        layers=len(cache.layout.kind_of),
        kv_heads=kv_heads,
        head_dim=cache.head_dim,
        capacity=capacity,
        batch=batch,
    )
    place = lambda new, old: jax.lax.dynamic_update_slice(new, old, (0,) * new.ndim)
    stacks = jax.tree.map(place, larger.stacks, cache.stacks)
    return dataclasses.replace(larger, stacks=stacks, lengths=jnp.copy(cache.lengths))
