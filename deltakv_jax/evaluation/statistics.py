"""Figures over scored tokens, in float64 on the host.

Every comparison is paired: it looks at the difference token by token, so that what makes a token
hard under both caches cancels. Without that, twenty chunks cannot tell 0.3 % from nothing.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float64

from deltakv_jax.typed import typed

_SEED = 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    stderr: float


@typed
def mean(values: Float64[np.ndarray, " n"]) -> Estimate:
    """The mean, with sqrt((mean of squares - square of mean) / (n - 1)) as its error.

    A single value has no error that could be known: its error is given as 0.
    """
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), spread / math.sqrt(len(values)))


@typed
def perplexity(nll: Float64[np.ndarray, " n"]) -> Estimate:
    """exp(mean nll), its error to first order."""
    log = mean(nll)
    value = math.exp(log.value)
    return Estimate(value, value * log.stderr)


@typed
def log_perplexity_change(
    nll: Float64[np.ndarray, " n"], base_nll: Float64[np.ndarray, " n"]
) -> Estimate:
    """ln(perplexity / perplexity of the base) over the same tokens, with its paired error."""
    return mean(nll - base_nll)


def percent(change: Estimate) -> Estimate:
    """A change of ln(perplexity) as a change of perplexity in percent, its error to first order."""
    return Estimate(100 * math.expm1(change.value), 100 * math.exp(change.value) * change.stderr)


@typed
def percentile(values: Float64[np.ndarray, " n"], fraction: float) -> float:
    """The value that `fraction` of the values stay below, interpolated between neighbours."""
    return float(np.quantile(values, fraction))


@typed
def share(flags: Bool[np.ndarray, " n"]) -> float:
    """The share of true values."""
    return float(flags.mean())


@typed
def root_mean_square(values: Float64[np.ndarray, " n"]) -> float:
    """sqrt(mean(values²))."""
    return math.sqrt(float(np.mean(values**2)))


@typed
def bootstrap_interval(means: Float64[np.ndarray, " c"]) -> tuple[float, float] | None:
    """The 95 % interval of the mean over chunks, by resampling whole chunks (block bootstrap).

    Neighbouring tokens err together, which the standard error over tokens does not see; chunks are
    independent of one another. The resampling is the same in every run.

    Args:
      means: of each chunk, all of one size.

    Returns:
      What 2.5 and 97.5 % of 10,000 resampled means stay below; None for a single chunk.
    """
    if len(means) < 2:
        return None
    rng = np.random.default_rng(_SEED)
    shares = np.full(len(means), 1 / len(means))
    # in parts, since the draws of a long text would not fit in memory at once
    parts = [rng.multinomial(len(means), shares, size=100) @ means for _ in range(100)]
    low, high = np.quantile(np.concatenate(parts) / len(means), [0.025, 0.975])
    return float(low), float(high)
