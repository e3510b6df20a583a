"""Attention over a packed cache, and the choice of who computes it."""

from deltakv_jax.attention.api import Implementation, attend
from deltakv_jax.attention.plain import attend_plain
from deltakv_jax.attention.rope import RopeTables, apply_rope, inverse_frequencies, rope_tables

__all__ = [
    "Implementation",
    "RopeTables",
    "apply_rope",
    "attend",
    "attend_plain",
    "inverse_frequencies",
    "rope_tables",
]
