"""Rounding that looks at the error that attention sees: error feedback along head_dim (GPTQ).

In the metric H of a vector's errors, each channel's rounding error is taken off the channels that
are still to be rounded: rows of the Cholesky factor of the inverse of H say how (arXiv 2210.17323).
Codes, scales and reading stay as they are.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from deltakv_jax.codec.hadamard import rotate as hadamard
from deltakv_jax.typed import typed
from scripts.bench.codecs.quantizers import Scaled
from scripts.bench.codecs.sides import Known, Rotation

_DAMPING = 0.1  # of the mean eigenvalue


@typed
def feedback_rows(metric: Float[np.ndarray, "*lead d d"]) -> Float32[np.ndarray, "*lead d d"]:
    """What a channel's error, the row, takes off each later channel, in the Hadamard frame."""
    d = metric.shape[-1]
    turn = np.asarray(hadamard(jnp.eye(d)), np.float64)
    turned = turn @ metric.astype(np.float64) @ turn
    size = np.trace(turned, axis1=-2, axis2=-1)[..., None, None] / d
    damped = (1 - _DAMPING) * turned / size + _DAMPING * np.eye(d)
    upper = np.swapaxes(np.linalg.cholesky(np.linalg.inv(damped)), -1, -2)
    diagonal = np.diagonal(upper, axis1=-2, axis2=-1)[..., None]
    return np.triu(upper / diagonal, 1).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feedback:
    """One side, token by token, about the calibrated mean and in the Hadamard frame."""

    quantizer: Scaled

    def read_back(self, x: Array, rope: Rotation, known: Known) -> Array:
        """Scales as without feedback; then channel after channel."""
        mean = rope(jnp.broadcast_to(known["mean"], x.shape))
        y = hadamard(rope(x) - mean)
        scale, rows = self.quantizer.best_scale(y), known["feedback"]

        def step(left: Array, channel: Array) -> tuple[Array, Array]:
            at = channel // self.quantizer.block
            value, unit = left[..., channel], scale[..., at]
            made = self.quantizer.round_trip(value / unit) * unit
            return left - (value - made)[..., None] * rows[:, channel], made

        _, made = jax.lax.scan(step, y, jnp.arange(y.shape[-1]))
        return hadamard(jnp.moveaxis(made, 0, -1)) + mean

    def bits(self, head_dim: int, ctx: int) -> float:
        """Those of the codes."""
        return self.quantizer.bits_per_value(head_dim)
