"""The orthonormal Walsh-Hadamard transform along head_dim: symmetric, so its own inverse.

It spreads an outlier channel over all channels before they share a scale (QuaRot,
arXiv 2404.00456). Butterflies and not a matrix product: their order of additions is fixed, so the
codes that follow do not depend on how many tokens are transformed at once.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float32

from deltakv_jax.codec.blocks import rounded
from deltakv_jax.typed import typed


def transform_size(head_dim: int) -> int:
    """The largest power of two that divides head_dim: the transform is block-diagonal."""
    return head_dim & -head_dim


@typed
def rotate(x: Float32[Array, "*lead d"]) -> Float32[Array, "*lead d"]:
    """The transform of each run of `transform_size(d)` values of the last axis."""
    size = transform_size(x.shape[-1])
    y = x.reshape(-1, size)
    half = 1
    while half < size:
        a, b = jnp.split(y.reshape(-1, size // (2 * half), 2, half), 2, axis=-2)
        y = jnp.concatenate([a + b, a - b], axis=-2).reshape(-1, size)
        half *= 2
    return rounded(y * size**-0.5, float(jnp.finfo(jnp.float32).max)).reshape(x.shape)
