"""Matrix products with the weights of one layer out of a stack."""

from deltakv_jax.linear.stack import Stack as Stack
