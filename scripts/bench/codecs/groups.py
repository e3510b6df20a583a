"""Sides that code groups of tokens together: chains of differences, and look-ahead.

Letters as in `reading`; g groups, n position in the group. The last group is filled up with its
last token, as its statistics are not used before it closes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.codec.hadamard import rotate as hadamard
from scripts.bench.codecs.quantizers import Asymmetric, stored_scale
from scripts.bench.codecs.sides import Independent, Known, Quantizer, Rotation


def grouped(x: Array, interval: int) -> Array:
    """[n b g k d] of [b t k d]."""
    b, t, k, d = x.shape
    padded = jnp.pad(x, ((0, 0), (0, -t % interval), (0, 0), (0, 0)), mode="edge")
    return jnp.moveaxis(padded.reshape(b, -1, interval, k, d), 2, 0)


def ungrouped(groups: Array, t: int) -> Array:
    """The first t tokens, [b t k d]."""
    n, b, g, k, d = groups.shape
    return jnp.moveaxis(groups, 0, 2).reshape(b, g * n, k, d)[:, :t]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicted:
    """About a mean, each block is predicted by a coefficient times an earlier reconstruction.

    Attributes:
      quantizer: of the residual.
      coefficients: what the encoder chooses from, block by block.
      mean: as in `Independent`.
      interval: groups are coded each by itself; their first token is predicted by 0.
      anchor: the prediction is the group's first token, not the last one.
      before_rope: prediction and codes are before RoPE: motion compensation.
      by_energy: the encoder chooses the smallest residual, not the smallest error. Among several
        predictions one is nearer to the quantiser's grid than the others by chance; this leaves
        that out.
      block: values that share a choice.
    """

    quantizer: Quantizer
    coefficients: tuple[float, ...]
    mean: str | None = "mean"
    interval: int = 32
    anchor: bool = False
    before_rope: bool = False
    by_energy: bool = False
    block: int = 32

    def read_back(self, x: Array, rope: Rotation, known: Known) -> Array:
        """The closed loop."""
        made = hadamard(ungrouped(self._coded(x, rope, known)[0], x.shape[1]))
        return (rope(made) if self.before_rope else made) + rope(self._mean(x, known))

    def bits(self, head_dim: int, ctx: int) -> float:
        """Codes and choices, in whole bits."""
        choice = (len(self.coefficients) - 1).bit_length()
        return self.quantizer.bits_per_value(head_dim) + choice / self.block

    def choices(self, x: Array, rope: Rotation, known: Known) -> Array:
        """How often each coefficient is chosen, [c]; first tokens of groups have no choice."""
        chosen = self._coded(x, rope, known)[1][1:]
        return jnp.stack([jnp.mean(chosen == i) for i in range(len(self.coefficients))])

    def _mean(self, x: Array, known: Known) -> Array:
        return jnp.broadcast_to(known[self.mean] if self.mean else 0.0, x.shape)

    def _coded(self, x: Array, rope: Rotation, known: Known) -> tuple[Array, Array]:
        """Tokens as they come back [n b g k d], and their choices [n b g k blocks]."""

        def step(carry: tuple[Array, Array, Array], x: Array):
            last, first, n = carry
            r, choice = self._token(x, jnp.where(n > 0, first if self.anchor else last, 0.0))
            return (r, jnp.where(n > 0, first, r), n + 1), (r, choice)

        residual = x - self._mean(x, known)
        turned = residual if self.before_rope else rope(residual)
        groups = grouped(hadamard(turned), self.interval)
        zero = jnp.zeros_like(groups[0])
        return jax.lax.scan(step, (zero, zero, jnp.int32(0)), groups)[1]

    def _token(self, x: Array, earlier: Array) -> tuple[Array, Array]:
        coefficients = jnp.array(self.coefficients).reshape(-1, *(1,) * x.ndim)
        predictions = coefficients * earlier
        made = predictions + self.quantizer(x - predictions)
        errors = ((predictions if self.by_energy else made) - x) ** 2
        blocks = errors.reshape(*errors.shape[:-1], -1, self.block)
        choice = jnp.argmin(jnp.sum(blocks, axis=-1), axis=0)
        spread = jnp.repeat(choice, self.block, axis=-1)
        return jnp.take_along_axis(made, spread[None], axis=0)[0], choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerChannel:
    """A group's channels each from their least to their largest value, as KIVI has keys.

    Reads of the open group must not come here: it is known whole before it is coded.
    """

    bits_of_code: int
    group: int = 32

    def read_back(self, x: Array, rope: Rotation, known: Known) -> Array:
        """Blocks along tokens in place of channels."""
        groups = jnp.moveaxis(grouped(rope(x), self.group), 0, -1)
        made = Asymmetric(bits=self.bits_of_code, block=self.group)(groups)
        return ungrouped(jnp.moveaxis(made, -1, 0), x.shape[1])

    def bits(self, head_dim: int, ctx: int) -> float:
        """Codes, scales and least values."""
        return self.bits_of_code + 32 / self.group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """Variance-normalised tiles: a scale for each channel times one for each token, as KVarN has.

    Scales are found in turns, so that rows and columns of a tile have a mean square of 1, and are
    stored in float16; what is left is coded from the least to the largest value of a token.
    """

    bits_of_code: int
    tile: int = 128
    turns: int = 4

    def read_back(self, x: Array, rope: Rotation, known: Known) -> Array:
        """In the Hadamard frame."""
        tiles = grouped(hadamard(rope(x)), self.tile)
        channel, token = jnp.ones_like(tiles[:1]), jnp.ones_like(tiles[..., :1])
        size = lambda y, axis: jnp.sqrt(jnp.mean(y**2, axis=axis, keepdims=True) + 1e-12)
        for _ in range(self.turns):
            channel = size(tiles / token, 0)
            token = size(tiles / channel, -1)
        channel, token = stored_scale(channel, "f16"), stored_scale(token, "f16")
        levels = self._coded(tiles / (channel * token))
        return hadamard(ungrouped(levels * channel * token, x.shape[1]))

    def _coded(self, y: Array) -> Array:
        return Asymmetric(bits=self.bits_of_code, block=y.shape[-1])(y)

    def bits(self, head_dim: int, ctx: int) -> float:
        """Codes; a token's scale, which its step takes in, and least value; a channel's scale."""
        return self.bits_of_code + 32 / head_dim + 16 / self.tile


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupMean:
    """Each group about its own mean, which is coded about the model's: look-ahead.

    Reads of the open group must not come here.
    """

    inner: Independent
    mean_quantizer: Quantizer
    group: int = 32

    def read_back(self, x: Array, rope: Rotation, known: Known) -> Array:
        """The inner side's reconstruction of what is left, and the mean."""
        groups = grouped(x, self.group)
        known_mean = known["mean"]
        off = jnp.mean(groups, axis=0) - known_mean
        mean = known_mean + hadamard(self.mean_quantizer(hadamard(off)))
        mean = ungrouped(jnp.broadcast_to(mean, groups.shape), x.shape[1])
        return self.inner.read_back(x - mean, rope, known) + rope(mean)

    def bits(self, head_dim: int, ctx: int) -> float:
        """Codes of tokens and of means."""
        return (
            self.inner.bits(head_dim, ctx)
            + self.mean_quantizer.bits_per_value(head_dim) / self.group
        )
