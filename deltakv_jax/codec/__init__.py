"""Formats in which one side (K or V) of a cache is stored, and the specs that name them."""

from deltakv_jax.codec.formats import Format, Leaf, Leaves, Unpack
from deltakv_jax.codec.packing import Planes
from deltakv_jax.codec.spec import KVSpec, parse_spec

__all__ = ["Format", "KVSpec", "Leaf", "Leaves", "Planes", "Unpack", "parse_spec"]
