"""Bits for the codes of K and V of each layer under a budget, by what an error there costs.

What is counted is what is packed, codes and scales, as the leaves' bytes; refinements of a window
are not. A bit more goes where it saves most, again and again, until none fits: as each bit saves
less than the one before it, nothing else that takes as many bits would cost less.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from deltakv_jax.codec import Format, KVSpec
from deltakv_jax.errors import UserError
from deltakv_jax.typed import typed

_ROWS = 1024  # of normal values, of which errors are measured
_ROUNDING = 1e-9  # of a sum of bits


class Choice(NamedTuple):
    """A way to pack one side.

    Attributes:
      side: the format.
      bits: of a packed value, everything counted.
      error: relative squared error of normal values.
    """

    side: Format
    bits: float
    error: float


@functools.cache
def choices(side: Format, head_dim: int) -> tuple[Choice, ...]:
    """What a side may become, by rising bits: itself alone where its codes have no choice."""
    allowed = side.options.get("bits")
    if not isinstance(allowed, tuple):
        return (_choice(side, head_dim),)
    return tuple(_choice(dataclasses.replace(side, bits=bits), head_dim) for bits in allowed)


def packed_bits(side: Format, head_dim: int) -> float:
    """Bits of a packed value."""
    rows = lambda per: 1 if per == "token" else side.interval
    leaves = side.leaves(head_dim).values()
    each = (leaf.width * np.dtype(leaf.dtype).itemsize / rows(leaf.per) for leaf in leaves)
    return 8 * sum(each) / head_dim


def _choice(side: Format, head_dim: int) -> Choice:
    return Choice(side, packed_bits(side, head_dim), _error(side, head_dim))


def _error(side: Format, head_dim: int) -> float:
    x = np.random.default_rng(0).standard_normal((_ROWS * side.interval, head_dim), np.float32)
    rows = lambda per: len(x) if per == "token" else _ROWS
    leaves = side.leaves(head_dim).items()
    empty = {key: jnp.zeros((rows(leaf.per), leaf.width), leaf.dtype) for key, leaf in leaves}
    got = jax.jit(lambda x: side.decode(side.encode(x, jnp.ones(len(x), bool), empty)))(x)
    return float(np.sum((np.asarray(got) - x) ** 2) / np.sum(x**2))


def allot(
    template: KVSpec,
    k_cost: Float64[np.ndarray, " l"],
    v_cost: Float64[np.ndarray, " l"],
    *,
    average: float,
    head_dim: int,
) -> tuple[KVSpec, ...]:
    """The formats of all layers, which take at most `average` bits a packed value.

    Args:
      template: says all but the bits of codes.
      k_cost: of each layer, for each unit of relative squared error of K.
      v_cost: of V.
      average: over K and V of all layers, everything counted.
      head_dim: values that a row has.

    Raises:
      UserError: where no side has a choice, or the least takes more bits.
    """
    of_k, of_v = (choices(side, head_dim) for side in (template.k, template.v))
    if len(of_k) == len(of_v) == 1:
        raise UserError(f"--kv {template}: no side of it has codes of several widths, as layered")
    layers = len(k_cost)
    offered = [of_k] * layers + [of_v] * layers
    least = float(np.mean([ways[0].bits for ways in offered]))
    if average < least - _ROUNDING:
        raise UserError(f"--bits {average:g} is less than the {least:.4g} of the least codes")
    taken = greedily(offered, np.concatenate([k_cost, v_cost]), average * len(offered))
    sides = [ways[at].side for ways, at in zip(offered, taken, strict=True)]
    return tuple(map(KVSpec, sides[:layers], sides[layers:]))


@typed
def greedily(
    offered: Sequence[Sequence[Choice]], costs: Float64[np.ndarray, " n"], budget: float
) -> list[int]:
    """Which choice each side gets, so that all together take at most `budget` bits."""
    taken = [0] * len(offered)
    left = budget - sum(ways[0].bits for ways in offered) + _ROUNDING * len(offered)

    def step(n: int) -> tuple[float, float]:
        """What one choice more of this side saves for a bit, and the bits that it takes."""
        now, then = offered[n][taken[n] : taken[n] + 2]
        return costs[n] * (now.error - then.error) / (then.bits - now.bits), then.bits - now.bits

    while True:
        more = [(*step(n), n) for n, ways in enumerate(offered) if taken[n] + 1 < len(ways)]
        fits = [one for one in more if one[1] <= left]
        if not fits:
            return taken
        _, bits, n = max(fits, key=lambda one: (one[0], -one[2]))
        taken[n] += 1
        left -= bits
