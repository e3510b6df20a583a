"""What a step knows beside its queries and the cache."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from deltakv_jax.cache.near import Near, near_tokens, window_of
from deltakv_jax.cache.state import KVCache, Sides


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyCentre:
    """What was taken off the keys of a layer.

    Attributes:
      mean: float32 [b k d], before RoPE.
      inverse: float32 [d/2], inverse frequencies.
    """

    mean: Array
    inverse: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Step:
    """What a step knows beside its queries and the cache.

    Attributes:
      refined: for each stack, what its new tokens read of each other, as `write_and_refine` gives
        it; None where each sequence has one.
      centre: what was taken off the keys; None for nothing.
    """

    refined: tuple[Sides, ...] | None = None
    centre: KeyCentre | None = None


ALONE = Step()
"""Of one token in each sequence, of keys that nothing was taken off."""


def near_in(
    cache: KVCache, kind: int, row: Array, positions: Int32[Array, "b t"], step: Step
) -> Near | None:
    """What the queries of a step read refined in a layer of this kind; None without a window."""
    spec = cache.layout.kinds[kind]
    if spec.k.centre and step.centre is None:
        raise ValueError(f"{spec}: the mean of the keys is not given")
    if positions.shape[1] == 1:
        return near_tokens(cache, kind, row, positions[:, 0], None)
    if window_of(spec) != (0, 0) and step.refined is None:
        raise ValueError(f"{spec}: the refinements of several new tokens are not given")
    band = step.refined[kind] if step.refined else None
    return near_tokens(cache, kind, row, jnp.max(positions, axis=1), band)
