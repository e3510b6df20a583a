"""The published arithmetic and the published random walk, through this project's own codec."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from deltakv_jax.codec import Format, parse_spec
from deltakv_jax.evaluation.coherence import reconstruction
from deltakv_jax.evaluation.statistics import Estimate, mean
from deltakv_jax.typed import typed

TOKENS, CHANNELS = 512, 1024
SEEDS = 16

Q4_0 = parse_spec("q4_0").k
DELTA = parse_spec("delta").k

_reconstruction = jax.jit(reconstruction, static_argnums=0)


@typed
def mean_squared_error(side: Format, x: Float32[np.ndarray, "t d"]) -> float:
    """Of what a cache of this format holds of t tokens."""
    back = np.asarray(_reconstruction(side, jnp.asarray(x)), np.float64)
    return float(np.mean((back - x) ** 2))


class Worked(NamedTuple):
    """One value of a block of 32 that was stored in q4_0.

    Attributes:
      largest: the largest magnitude of its block.
      value: the value.
      decoded: what comes back.
    """

    largest: float
    value: float
    decoded: float

    @property
    def error(self) -> float:
        """Of what comes back."""
        return abs(self.value - self.decoded)


def worked(value: float, wanted: float, steps: int = 7) -> Worked:
    """`value` in the block in which it is coded as so many steps, and comes back as `wanted`.

    A step is an eighth of the block's largest magnitude, which is therefore 8 wanted / steps.
    """
    largest = 8 * wanted / steps
    block = np.zeros((1, 32), np.float32)
    block[0, :2] = largest, value
    return Worked(largest, value, float(_reconstruction(Q4_0, jnp.asarray(block))[0, 1]))


def scale_gain(times_smaller: float) -> float:
    """RMS error of q4_0 on uniform values, by that on uniform differences so many times smaller."""
    rng = np.random.default_rng(0)
    values, differences = rng.uniform(-1, 1, (2, TOKENS, CHANNELS)).astype(np.float32)
    smaller = differences / np.float32(times_smaller)
    return (mean_squared_error(Q4_0, values) / mean_squared_error(Q4_0, smaller)) ** 0.5


def walk(drift: float, *, normal: bool, seed: int) -> Float32[np.ndarray, "t d"]:
    """A random walk of `TOKENS` tokens in `CHANNELS` channels.

    The first token is uniform in [-1, 1]; each step is `drift` times what is uniform in [-1, 1], or
    of a normal distribution of deviation 1 if `normal`.
    """
    rng = np.random.default_rng(seed)
    first, shape = rng.uniform(-1, 1, (1, CHANNELS)), (TOKENS - 1, CHANNELS)
    steps = rng.standard_normal(shape) if normal else rng.uniform(-1, 1, shape)
    return np.cumsum(np.concatenate([first, drift * steps]), axis=0).astype(np.float32)


class Gain(NamedTuple):
    """Mean squared error of q4_0 by that of delta, over `SEEDS` random walks."""

    mean: Estimate
    least: float
    most: float


@functools.cache
def walk_gain(drift: float, *, normal: bool) -> Gain:
    """The gain of differences on walks of this drift; see `walk`."""
    each = np.array([_gain(walk(drift, normal=normal, seed=seed)) for seed in range(SEEDS)])
    return Gain(mean(each), float(each.min()), float(each.max()))


def _gain(x: np.ndarray) -> float:
    return mean_squared_error(Q4_0, x) / mean_squared_error(DELTA, x)
