"""A cache saved after a prompt, with what it takes to go on from it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, UInt32

from deltakv_jax.cache import KVCache
from deltakv_jax.cache.checkpoint import load_cache, save_cache
from deltakv_jax.model import Llama
from deltakv_jax.parallel.sharding import WHOLE, cache_specs, check_batch, shardings


class Prefilled(NamedTuple):
    """Where a prompt ends.

    Attributes:
      logits: float32 [b v], of each sequence's last token.
      last: int32 [b], that token.
      cache: holds all tokens, the last one too.
    """

    logits: Array
    last: Array
    cache: KVCache


def save(folder: Path, model: Llama, end: Prefilled) -> None:
    """Saves the end of a prompt; raises UserError as `save_cache` does."""
    extra = {"logits": end.logits, "last": end.last}
    save_cache(folder, end.cache, model=fingerprint(model), extra=extra)


def load(folder: Path, model: Llama, mesh: Mesh | None = None) -> Prefilled:
    """What `save` was given, bit for bit, on any mesh; raises UserError as `load_cache` does."""
    where = None if mesh is None else functools.partial(_where, mesh)
    cache, extra = load_cache(folder, model=fingerprint(model), where=where)
    return Prefilled(**extra, cache=cache)


def _where(mesh: Mesh, cache: KVCache) -> tuple[KVCache, NamedSharding]:
    """Where a cache goes on a mesh, and the end of the prompt."""
    check_batch(mesh, len(cache.lengths))
    return shardings(mesh, cache_specs(cache)), NamedSharding(mesh, WHOLE)


def fingerprint(model: Llama) -> dict[str, Any]:
    """What tells one model from another: its config and a checksum of its weights."""
    return {**dataclasses.asdict(model.config), "weights_checksum": int(_checksum(model))}


@jax.jit
def _checksum(model: Llama) -> UInt32[Array, ""]:
    """An odd multiple of every word, summed modulo 2^32: no change of one word goes unseen.

    Integers, so that neither the device nor the order of the sum matters.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(model):
        words = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        total = 31 * total + jnp.sum(words.astype(jnp.uint32) * _odd_numbers(leaf.shape))
    return total


def _odd_numbers(shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """1, 3, 5, … in row-major order, without a reshape that a sharded array would move for."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return 2 * index + 1
