"""Trellis-coded quantisation along head_dim (Marcellin and Fischer, 1990), four states.

Twice the levels for the same bits: which half of them a code chooses from follows from the low bits
of the two codes before it. With u those bits, level = 4 (code >> 1) + 2 (u_i ^ u_{i-2}) + u_{i-1},
so that a reader needs no more than shifts; the writer finds the best codes of a block by Viterbi's
algorithm.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from scripts.bench.codecs.quantizers import Scaled, nearest

STATES = 4  # u_{i-1} + 2 u_{i-2}


def _transitions() -> tuple[np.ndarray, np.ndarray]:
    """For each state and way into it: the state before, and the quarter of the levels used."""
    ways = {state: [] for state in range(STATES)}
    for state in range(STATES):
        for u in (0, 1):
            quarter = 2 * (u ^ state >> 1) + (state & 1)
            ways[2 * state & 2 | u].append((state, quarter))
    both = np.array([ways[state] for state in range(STATES)])
    return both[..., 0], both[..., 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trellis(Scaled):
    """`Scaled` with twice as many levels as codes; blocks begin in state 0."""

    def bits_per_value(self, dim: int) -> float:
        """Codes and scales."""
        return super().bits_per_value(dim) - 1

    def round_trip(self, x: Array) -> Array:
        """The levels of the best path."""
        before, quarter = (jnp.array(table) for table in _transitions())
        quarters = [nearest(x, self.levels[i::4]) for i in range(4)]
        made = jnp.moveaxis(jnp.stack(quarters, axis=-1), -2, 0)  # block first

        def step(cost: Array, at: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            value, levels = at
            errors = (levels - value[..., None]) ** 2
            ways = cost[..., before] + errors[..., quarter]
            best = jnp.argmin(ways, axis=-1)
            pick = lambda table: jnp.where(best == 0, table[..., 0], table[..., 1])
            return jnp.min(ways, axis=-1), (pick(before), pick(levels[..., quarter]))

        start = jnp.full((*x.shape[:-1], STATES), jnp.inf).at[..., 0].set(0.0)
        cost, (origins, levels) = jax.lax.scan(step, start, (jnp.moveaxis(x, -1, 0), made))

        def back(state: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            origin, level = (jnp.take_along_axis(a, state[..., None], -1)[..., 0] for a in at)
            return origin, level

        last = jnp.argmin(cost, axis=-1)
        _, path = jax.lax.scan(back, last, (origins, levels), reverse=True)
        return jnp.moveaxis(path, 0, -1)
