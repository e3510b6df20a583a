"""Bits of codes allotted to K and V of each layer under a budget, by what an error there costs."""

import math

import numpy as np
from jaxtyping import Float64, Int64

from deltakv_jax.typed import typed
from scripts.bench.codecs.calibration import Moments

SIDES = ("k", "v")

ERROR = {2: 10**-0.94, 3: 10**-1.51, 4: 10**-2.12, 5: 10**-2.73}
"""Squared error of `candidates.codes` of so many bits, for normal values of variance 1."""


def costs(moments: dict[str, Moments], *, far: bool) -> Float64[np.ndarray, "s l"]:
    """Divergence in nats for each unit of relative squared error, white along head_dim.

    `far` leaves out what is read near.
    """
    trace = lambda m: np.trace(m, axis1=-2, axis2=-1).astype(np.float64)
    seen = lambda one: one.far_fisher if far else one.fisher
    sides = (moments[side] for side in SIDES)
    return np.stack(
        [
            np.sum(trace(seen(one)) * trace(one.cov), axis=1) / (2 * one.cov.shape[-1])
            for one in sides
        ]
    )


@typed
def allotted(costs: Float64[np.ndarray, "s l"], average: float) -> Int64[np.ndarray, "s l"]:
    """Bits of each side of each layer, at most `average` on average.

    Each bit goes where it saves most, from one below the average to one above: what was learned on
    one text need not hold on another.
    """
    least = max(min(ERROR), math.ceil(average) - 1)
    bits = np.full(costs.shape, least, np.int64)
    error = np.vectorize(lambda b: ERROR.get(b, np.inf))
    for _ in range(int((average - least) * bits.size)):
        saved = costs * (error(bits) - error(bits + 1))
        allowed = bits < min(least + 2, max(ERROR))
        bits[np.unravel_index(np.argmax(np.where(allowed, saved, -1)), bits.shape)] += 1
    return bits
