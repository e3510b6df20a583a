"""The KV cache as a value: a frozen pytree, and pure functions that return the next one."""

from deltakv_jax.cache.read import read, read_tile, slots
from deltakv_jax.cache.state import (
    KVCache,
    Layout,
    Stack,
    advance,
    bits_per_value,
    cache_bytes,
    make_cache,
    truncate,
)
from deltakv_jax.cache.write import write

__all__ = [
    "KVCache",
    "Layout",
    "Stack",
    "advance",
    "bits_per_value",
    "cache_bytes",
    "make_cache",
    "read",
    "read_tile",
    "slots",
    "truncate",
    "write",
]
