"""Matrix products: with a single matrix, or with that of one layer out of a stack."""

from deltakv_jax.linear.stack import Stack, product

__all__ = ["Stack", "product"]
