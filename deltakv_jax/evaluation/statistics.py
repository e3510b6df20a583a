"""Figures over scored tokens, in float64 on the host.

Every comparison is paired: it looks at the difference token by token, so that what makes a token
hard under both caches cancels. Without that, twenty chunks cannot tell 0.3 % from nothing.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float64

from deltakv_jax.typed import typed


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    stderr: float


@typed
def mean(values: Float64[np.ndarray, " n"]) -> Estimate:
    """The mean, with sqrt((mean of squares - square of mean) / (n - 1)) as its error."""
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)))


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
