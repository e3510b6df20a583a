"""Rotary position embedding, with Llama 3.1's scaling of the low frequencies.

The halves of a head are rotated against each other (value i with i + d/2), as Hugging Face stores
Llama; the original files and GGUF interleave the pairs (2i with 2i + 1) instead.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from deltakv_jax.config import LlamaConfig, RopeScaling
from deltakv_jax.typed import typed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RopeTables:
    """The rotation of each token of a step, the same in every layer.

    Attributes:
      positions: int32 [b t], counted from each sequence's own first token.
      cos: float32 [b t d/2], the cosine of each position times each inverse frequency.
      sin: float32 [b t d/2].
      inverse: float32 [d/2], the inverse frequencies, in radians per token.
    """

    positions: jax.Array
    cos: jax.Array
    sin: jax.Array
    inverse: jax.Array


def inverse_frequencies(config: LlamaConfig) -> np.ndarray:
    """Radians per token of each pair of values, float32 [d/2], after scaling."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    inverse = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    if config.rope_scaling is not None:
        inverse = _stretched(inverse, config.rope_scaling)
    if config.rope_factors is not None:
        inverse = inverse / np.asarray(config.rope_factors, np.float32)
    return inverse


def _stretched(inverse: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Divides the low frequencies by `factor`, with a linear passage between low and high."""
    turns = scaling.original_context * inverse / (2 * math.pi)  # over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - kept) * inverse / scaling.factor + kept * inverse).astype(np.float32)


@typed
def rope_tables(config: LlamaConfig, positions: Int[Array, "b t"]) -> RopeTables:
    """The tables of the given positions, computed in float32."""
    return tables_of(positions, jnp.asarray(inverse_frequencies(config)))


@typed
def tables_of(positions: Int[Array, "b t"], inverse: Float[Array, " half_d"]) -> RopeTables:
    """The same of inverse frequencies."""
    angles = positions[..., None].astype(jnp.float32) * inverse
    return RopeTables(positions.astype(jnp.int32), jnp.cos(angles), jnp.sin(angles), inverse)


@typed
def apply_rope(x: Float[Array, "b t heads d"], tables: RopeTables) -> Float[Array, "b t heads d"]:
    """Rotates every head of `x` by its token's position, in float32; the result has x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = tables.cos[:, :, None], tables.sin[:, :, None]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
