"""The KV cache as a value: a frozen pytree, and pure functions that return the next one."""

from deltakv_jax.cache.near import Near, window_of
from deltakv_jax.cache.read import read, read_tile, slots
from deltakv_jax.cache.state import (
    KVCache,
    Layout,
    Sides,
    Stack,
    advance,
    bits_per_value,
    cache_bytes,
    make_cache,
    truncate,
)
from deltakv_jax.cache.step import ALONE, KeyCentre, Step, near_in
from deltakv_jax.cache.write import write, write_and_refine

__all__ = [
    "ALONE",
    "KVCache",
    "KeyCentre",
    "Layout",
    "Near",
    "Sides",
    "Stack",
    "Step",
    "advance",
    "bits_per_value",
    "cache_bytes",
    "make_cache",
    "near_in",
    "read",
    "read_tile",
    "slots",
    "truncate",
    "window_of",
    "write",
    "write_and_refine",
]
