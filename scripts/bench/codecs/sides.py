"""One side (K or V) of a simulated cache, token by token: what it would hold of a chunk.

A side takes values before RoPE and gives reconstructions after it; for V the rotation is the
identity. Letters as in `reading`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.codec.hadamard import rotate as hadamard

Rotation = Callable[[Array], Array]
"""RoPE of [b t k d] by each token's position; the identity for V."""

Known = dict[str, Any]
"""What calibration has learned, by name."""


def unrotated(x: Array) -> Array:
    """The rotation of values."""
    return x


class Quantizer(Protocol):
    """The round trip of [*lead, d] through codes."""

    def bits_per_value(self, dim: int) -> float:
        """Of vectors of `dim` values, everything counted."""
        ...

    def __call__(self, x: Array) -> Array:
        """What comes back."""
        ...


class Side(Protocol):
    """A way to store one side. Hashable."""

    def read_back(self, x: Array, rope: Rotation, known: Known) -> Array:
        """What the cache would give for x [b t k d], after RoPE.

        Args:
          x: values before RoPE.
          rope: the rotation.
          known: what calibration has learned of this side of this layer.
        """
        ...

    def bits(self, head_dim: int, ctx: int) -> float:
        """Stored bits of a value over a context, side information included."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact:
    """Values as they are."""

    def read_back(self, x: Array, rope: Rotation, known: Known) -> Array:
        """After RoPE."""
        return rope(x)

    def bits(self, head_dim: int, ctx: int) -> float:
        """Of float32."""
        return 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Independent:
    """Each token by itself: a mean off, RoPE, a linear map along d, codes.

    Attributes:
      quantizer: of the mapped values.
      mean: the name of the channels' mean, taken off before RoPE; None for none.
      own_mean: tokens of the sequence itself whose mean is taken off those behind them, the first
        `SKIPPED` left out; 0 for none. Before them stands `mean`.
      mean_step: tokens that share one rotated mean, the average over them: what is then read of the
        mean is one product for so many tokens.
      map: "hadamard", or the name of a calibrated pair of matrices, NAME_to and NAME_from.
      before_rope: the codes are of values before RoPE.
    """

    quantizer: Quantizer
    mean: str | None = None
    own_mean: int = 0
    mean_step: int = 1
    map: str | None = "hadamard"
    before_rope: bool = False

    def read_back(self, x: Array, rope: Rotation, known: Known) -> Array:
        """Codes of the residual, and the exact mean."""
        mean = self._mean(x, known)
        to, back = _maps(self.map, known)
        if self.before_rope:
            return rope(back(self.quantizer(to(x - mean))) + mean)
        turned = _averaged(rope(mean), self.mean_step)
        return back(self.quantizer(to(rope(x) - turned))) + turned

    def bits(self, head_dim: int, ctx: int) -> float:
        """Codes, and the mean in float16 where it is the sequence's own."""
        return self.quantizer.bits_per_value(head_dim) + (16 / ctx if self.own_mean else 0)

    def _mean(self, x: Array, known: Known) -> Array:
        mean = jnp.broadcast_to(known[self.mean], x.shape) if self.mean else jnp.zeros_like(x)
        if not self.own_mean:
            return mean
        own = jnp.mean(x[:, SKIPPED : self.own_mean], axis=1, keepdims=True)
        behind = jnp.arange(x.shape[1])[:, None, None] >= self.own_mean
        return jnp.where(behind, own.astype(jnp.float16).astype(jnp.float32), mean)


def _averaged(x: Array, step: int) -> Array:
    """Each token's x [b t k d] is the average of the `step` tokens that it is among."""
    b, t, k, d = x.shape
    groups = jnp.pad(x, ((0, 0), (0, -t % step), (0, 0), (0, 0)), mode="edge")
    groups = groups.reshape(b, -1, step, k, d)
    return jnp.repeat(jnp.mean(groups, axis=2), step, axis=1)[:, :t]


SKIPPED = 4
"""Tokens at a sequence's beginning that are like no others."""


def _maps(name: str | None, known: Known) -> tuple[Callable, Callable]:
    """The linear map along d, and its inverse."""
    if name is None:
        return unrotated, unrotated
    if name == "hadamard":
        return hadamard, hadamard
    along = lambda m: lambda y: jnp.einsum("kij,btkj->btki", m, y, precision="highest")
    return along(known[f"{name}_to"]), along(known[f"{name}_from"])
