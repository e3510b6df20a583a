"""Matrix products: with a single matrix, or with that of one layer out of a stack."""

from deltakv_jax.linear.packed import PackedMatrix
from deltakv_jax.linear.stack import Matrix, Stack, multiplied_by

__all__ = ["Matrix", "PackedMatrix", "Stack", "multiplied_by"]
