"""How much neighbouring tokens have in common: what a cache of differences can live on.

A difference is worth coding where x_t - x_{t-1} is smaller than what would be coded without it:
x_t itself (q4_0), or x_t - m, where a constant m per channel is all that tokens share. With r the
correlation of neighbours about m, the mean square of the difference is 2 (1 - r) times that of
x - m, so differences win over the mean only where r > 1/2.

Everything is a ratio of sums in float64, over the tokens of all chunks. A chunk's first token, BOS
among them, counts as a token but has no difference: none crosses a chunk's start. m is the mean
over these same tokens, so what refers to it knows the text beforehand.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64

from deltakv_jax.codec import Format, parse_spec
from deltakv_jax.codec.packing import BLOCK
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation.capture import ARRAYS
from deltakv_jax.typed import typed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The figures of K before RoPE, K after RoPE or V, in one layer or in all of them.

    A figure is None where its divisor is 0, and those on blocks of 32 values where head_dim is not
    a multiple of 32. Over all layers the sums are added up, so a layer of larger values weighs
    more.

    Attributes:
      layer: its index, or None for all layers together.
      array: which of `ARRAYS`.
      relative_delta: RMS(x_t - x_{t-1}) / RMS(x_t), both over the tokens that have one before them
        in their chunk. sqrt(2) where neighbours have nothing in common and no channel a mean.
      correlation: the mean of (x_t - m)(x_{t-1} - m) over pairs of neighbours, by the mean of
        (x_t - m)² over tokens; m is the channel's mean, and both are summed over channels first.
      mean_energy: share of the sum of x² that is the channel means'.
      range_ratio: (max - min) of x_t - x_{t-1} over a block, by that of x_t, averaged over blocks
        and tokens where the latter is not 0. The range is what sets a 4-bit scale.
      q4_0_mse: squared error of `q4_0`, by the sum of x².
      delta_mse: of `delta`, its keyframes included.
      centred_q4_0_mse: of `q4_0` of x - m, with m put back.
    """

    layer: int | None
    array: str
    relative_delta: float | None
    correlation: float | None
    mean_energy: float | None
    range_ratio: float | None
    q4_0_mse: float | None
    delta_mse: float | None
    centred_q4_0_mse: float | None

    @property
    def delta_by_q4_0(self) -> float | None:
        """The error of `delta` by that of `q4_0`: below 1 where differences gain."""
        return _quotient(self.delta_mse, self.q4_0_mse)

    @property
    def centred_by_q4_0(self) -> float | None:
        """The error of `q4_0` about the mean by that of `q4_0`: below 1 where a mean gains."""
        return _quotient(self.centred_q4_0_mse, self.q4_0_mse)


def _quotient(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coherence:
    """One model on one text.

    Attributes:
      model: its name.
      text: its name.
      text_sha256: of its bytes.
      ctx: tokens of a chunk.
      chunks: how many.
      head_dim: values of a head.
      interval: tokens from keyframe to keyframe of `delta`.
      rows: for each layer and then for all of them, one for each of `ARRAYS`.
    """

    model: str
    text: str
    text_sha256: str
    ctx: int
    chunks: int
    head_dim: int
    interval: int
    rows: tuple[Row, ...]


class BlockSums(NamedTuple):
    """What is summed over blocks of 32 values, float64, one for each array a.

    Attributes:
      range_ratios: [a], of the blocks whose range is not 0.
      ranges: [a], how many these are.
      q4_0: [a], squared errors.
      delta: [a].
      centred_q4_0: [a].
    """

    range_ratios: np.ndarray
    ranges: np.ndarray
    q4_0: np.ndarray
    delta: np.ndarray
    centred_q4_0: np.ndarray


class Sums(NamedTuple):
    """What is summed over chunks, and over layers, for each array a: float64 [a].

    Attributes:
      values: how many.
      neighbours: how many of them have one before them.
      squares: x².
      later_squares: x² of those that have one before them.
      deltas: (x_t - x_{t-1})².
      centred: (x - m)².
      products: (x_t - m)(x_{t-1} - m).
      means: m², once for each value.
      blocks: None where head_dim has no blocks.
    """

    values: np.ndarray
    neighbours: np.ndarray
    squares: np.ndarray
    later_squares: np.ndarray
    deltas: np.ndarray
    centred: np.ndarray
    products: np.ndarray
    means: np.ndarray
    blocks: BlockSums | None


def rows(captured: Iterable[np.ndarray], interval: int) -> tuple[Row, ...]:
    """The figures of each layer and of all layers together.

    Args:
      captured: float32 [l a k t d] of each chunk, gone over twice: the means come first.
      interval: tokens from keyframe to keyframe of `delta`.

    Raises:
      UserError: where a value is not finite, or too large for float16.
    """
    means = channel_means(captured)
    chunks = (_chunk_sums(*item, means, interval) for item in enumerate(captured, 1))
    sums = functools.reduce(lambda a, b: list(map(_add, a, b)), chunks)
    by_layer = [row for layer, of_layer in enumerate(sums) for row in _figures(layer, of_layer)]
    return (*by_layer, *_figures(None, functools.reduce(_add, sums)))


def channel_means(captured: Iterable[np.ndarray]) -> Float64[np.ndarray, "l a k d"]:
    """The mean of each channel (a value of a kv head) over the tokens of all chunks."""
    total, tokens = np.float64(0), 0
    for number, chunk in enumerate(captured, 1):
        of_chunk = chunk.sum(axis=-2, dtype=np.float64)
        if not np.isfinite(of_chunk).all():
            raise UserError(f"K or V is not finite in chunk {number}; try --weights f32")
        total, tokens = total + of_chunk, tokens + chunk.shape[-2]
    return np.asarray(total / tokens)


def _chunk_sums(number: int, chunk: np.ndarray, means: np.ndarray, interval: int) -> list[Sums]:
    """The sums of every layer of a chunk, which an error calls by its number."""
    sums = [layer_sums(*layer, interval) for layer in zip(chunk, means, strict=True)]
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(sums)):
        raise UserError(f"K or V is too large in chunk {number} for the float16 of q4_0 and delta")
    return sums


@typed
def layer_sums(
    x: Float32[np.ndarray, "a k t d"], mean: Float64[np.ndarray, "a k d"], interval: int
) -> Sums:
    """The sums of one chunk in one layer.

    Args:
      x: the captured arrays.
      mean: of each channel.
      interval: tokens from keyframe to keyframe of `delta`.
    """
    exact, mean = x.astype(np.float64), mean[..., None, :]
    centred, count = exact - mean, lambda values: np.full(len(x), float(values[0].size))
    return Sums(
        values=count(x),
        neighbours=count(x[:, :, 1:]),
        squares=_total(exact**2),
        later_squares=_total(exact[:, :, 1:] ** 2),
        deltas=_total(np.diff(exact, axis=2) ** 2),
        centred=_total(centred**2),
        products=_total(centred[:, :, 1:] * centred[:, :, :-1]),
        means=x.shape[2] * _total(mean**2),
        blocks=None if x.shape[3] % BLOCK else _block_sums(x, exact, mean, interval),
    )


def _block_sums(x: np.ndarray, exact: np.ndarray, mean: np.ndarray, interval: int) -> BlockSums:
    whole, difference = _ranges(exact[:, :, 1:]), _ranges(np.diff(exact, axis=2))
    ratios = np.divide(difference, whole, out=np.zeros_like(whole), where=whole > 0)
    stored = jax.device_get(_stored(x, mean.astype(np.float32), interval=interval))
    return BlockSums(
        _total(ratios),
        _total((whole > 0).astype(np.float64)),
        *(_total((values - exact) ** 2) for values in stored),
    )


def _ranges(x: np.ndarray) -> np.ndarray:
    """Max - min of each block: [a k t d / 32]."""
    return np.ptp(x.reshape(*x.shape[:-1], -1, BLOCK), axis=-1)


def _total(x: np.ndarray) -> np.ndarray:
    """The sum over all axes but the first."""
    return x.reshape(len(x), -1).sum(axis=1)


@functools.partial(jax.jit, static_argnames="interval")
@typed
def _stored(
    x: Float32[Array, "a k t d"], mean: Float32[Array, "a k 1 d"], *, interval: int
) -> tuple[Float32[Array, "a k t d"], ...]:
    """What is left of x in `q4_0`, in `delta` and in `q4_0` about the mean."""
    q4_0, delta = parse_spec("q4_0").k, parse_spec(f"delta:interval={interval}").k
    return (
        reconstruction(q4_0, x),
        reconstruction(delta, x),
        mean + reconstruction(q4_0, x - mean),
    )


@typed
def reconstruction(side: Format, x: Float32[Array, "*lead t d"]) -> Float32[Array, "*lead t d"]:
    """What a cache of this format holds of whole sequences, their groups beginning at token 0."""
    *lead, t, d = x.shape
    groups = math.ceil(t / side.interval)
    slots = groups * side.interval
    padded = jnp.pad(x, [*[(0, 0)] * len(lead), (0, slots - t), (0, 0)])
    rows = {"token": slots, "group": groups}
    empty = {
        key: jnp.zeros((*lead, rows[leaf.per], leaf.width), leaf.dtype)
        for key, leaf in side.leaves(d).items()
    }
    everything = jnp.ones((*lead, slots), bool)
    return side.decode(side.encode(padded, everything, empty))[..., :t, :]


def _add(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(np.add, a, b)


def _figures(layer: int | None, sums: Sums) -> list[Row]:
    return [
        Row(layer=layer, array=array, **_ratios(jax.tree.map(lambda leaf, i=i: leaf[i], sums)))
        for i, array in enumerate(ARRAYS)
    ]


def _ratios(sums: Sums) -> dict[str, float | None]:
    """Of the sums of one array."""
    delta = _ratio(sums.deltas, sums.later_squares)
    return {
        "relative_delta": None if delta is None else math.sqrt(delta),
        "correlation": _ratio(sums.products / sums.neighbours, sums.centred / sums.values),
        "mean_energy": _ratio(sums.means, sums.squares),
        **_block_ratios(sums.blocks, sums.squares),
    }


def _block_ratios(blocks: BlockSums | None, squares: np.ndarray) -> dict[str, float | None]:
    keys = ("range_ratio", "q4_0_mse", "delta_mse", "centred_q4_0_mse")
    if blocks is None:
        return dict.fromkeys(keys)
    errors = (blocks.q4_0, blocks.delta, blocks.centred_q4_0)
    ratios = _ratio(blocks.range_ratios, blocks.ranges), *(_ratio(e, squares) for e in errors)
    return dict(zip(keys, ratios, strict=True))


def _ratio(part: np.ndarray, whole: np.ndarray) -> float | None:
    return float(part / whole) if whole else None
