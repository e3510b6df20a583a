"""Formats in which one side (K or V) of a cache is stored, and the specs that name them."""

from deltakv_jax.codec.formats import Format, Leaf, Leaves, Unpack
from deltakv_jax.codec.packing import Planes
from deltakv_jax.codec.spec import CacheSpec, KVSpec, LayerSpecs, kinds_of, parse_spec

__all__ = [
    "CacheSpec",
    "Format",
    "KVSpec",
    "LayerSpecs",
    "Leaf",
    "Leaves",
    "Planes",
    "Unpack",
    "kinds_of",
    "parse_spec",
]
