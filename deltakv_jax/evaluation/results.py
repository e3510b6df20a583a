"""What a run gives: scores of tokens as they come from the device, and the figures made of them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float64

from deltakv_jax.cache import bits_per_value, cache_bytes
from deltakv_jax.codec import CacheSpec, kinds_of
from deltakv_jax.config import LlamaConfig
from deltakv_jax.evaluation import statistics
from deltakv_jax.evaluation.profiles import Profile, by_group_position, by_position
from deltakv_jax.generation.steps import empty_cache


class Measured(NamedTuple):
    """What some chunks give, on the host: formats f, chunks c, scored predictions n, layers l.

    Attributes:
      nll: minus the natural logarithm of each true token's probability.
      kld: divergence of the first format's distribution from the format's, in nats.
      same_top: whether the likeliest token is the first format's.
      squares: of the errors and of the values themselves, summed over a chunk (the last axis), of
        K, V and the attention output (the axis before it); no layers where it was not asked for.
      seconds: in the model and its cache.
    """

    nll: Float64[np.ndarray, "f c n"]
    kld: Float64[np.ndarray, "f c n"]
    same_top: Bool[np.ndarray, "f c n"]
    squares: Float64[np.ndarray, "f c l 3 2"]
    seconds: Float64[np.ndarray, " f"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """Root of summed squared errors over summed squared values, layer by layer.

    Each layer is given what the layers before it make of an exact cache, so that its errors are
    its own. The output is that of attention, all heads together.
    """

    k: tuple[float, ...]
    v: tuple[float, ...]
    output: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The figures of one format. `ppl_stderr` and its like are one standard error.

    Attributes:
      kv: the canonical spec, or the name of those of all layers.
      ppl: perplexity, exp of the mean nll.
      delta_ln_ppl: ln(ppl / ppl of the first format); its error is paired.
      delta_ln_ppl_low, delta_ln_ppl_high: its 95 % interval, by resampling whole chunks; None for a
        single chunk.
      kld_mean: mean KL divergence of the first format from this one, in nats a token.
      kld_median, kld_p99, kld_p999: what 50, 99 and 99.9 % of the tokens' divergences stay below.
      kld_max: the largest.
      same_top: share of the predictions whose likeliest token is the first format's.
      probability_rms: root mean square change of the true token's probability.
      bits_per_value: of a one-sequence cache made for exactly ctx tokens, everything counted.
      kv_bytes: of the same cache.
      by_position: against the position in the context.
      by_group_position: against the position in the group, the format's own or, for one without
        groups, the longest of the run; None where no format has groups.
      by_layer: errors of each layer; None where not asked for.
      tokens_per_second: through the model and the cache, without compiling and scoring.
    """

    kv: str
    ppl: float
    ppl_stderr: float
    delta_ln_ppl: float
    delta_ln_ppl_stderr: float
    delta_ln_ppl_low: float | None
    delta_ln_ppl_high: float | None
    kld_mean: float
    kld_stderr: float
    kld_median: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    same_top: float
    probability_rms: float
    bits_per_value: float
    kv_bytes: int
    by_position: Profile
    by_group_position: Profile | None
    by_layer: LayerErrors | None
    tokens_per_second: float

    @property
    def change(self) -> statistics.Estimate:
        """The change of perplexity in percent, with its paired error."""
        return statistics.percent(statistics.Estimate(self.delta_ln_ppl, self.delta_ln_ppl_stderr))

    @property
    def change_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the change in percent, where there is one."""
        if self.delta_ln_ppl_low is None or self.delta_ln_ppl_high is None:
            return None
        return 100 * math.expm1(self.delta_ln_ppl_low), 100 * math.expm1(self.delta_ln_ppl_high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One model on one text, a row for each format.

    Attributes:
      model: its name.
      text: its name.
      text_sha256: of its bytes.
      protocol: which predictions were scored.
      reads: "cache", or "raw" where attention inside a piece read what was not yet packed: such
        figures are not cache-true.
      sequential: whether tokens were fed one at a time.
      ctx: tokens of a chunk.
      chunks: how many.
      tokens_scored: predictions over all chunks.
      rows: one per format, in the order asked for.
    """

    model: str
    text: str
    text_sha256: str
    protocol: str
    reads: str
    sequential: bool
    ctx: int
    chunks: int
    tokens_scored: int
    rows: tuple[Row, ...]


def join(batches: Sequence[Measured]) -> Measured:
    """The chunks of all batches, one after the other."""
    nll, kld, same_top, squares, seconds = zip(*batches, strict=True)
    chunks = lambda parts: np.concatenate(parts, axis=1)
    return Measured(
        chunks(nll), chunks(kld), chunks(same_top), chunks(squares), np.sum(seconds, axis=0)
    )


class Size(NamedTuple):
    """What a one-sequence cache made for exactly one chunk takes, all but its counters."""

    bits_per_value: float
    kv_bytes: int


def cache_size(config: LlamaConfig, spec: CacheSpec, ctx: int) -> Size:
    """The size of the cache that a chunk of `ctx` tokens fills; nothing is allocated."""
    cache = jax.eval_shape(lambda: empty_cache(config, spec, capacity=ctx))
    return Size(bits_per_value(cache), cache_bytes(cache))


def rows(
    specs: Sequence[CacheSpec], ctx: int, measured: Measured, sizes: Sequence[Size]
) -> tuple[Row, ...]:
    """The figures of each format, over all tokens of all chunks; the first format is the base."""
    speeds = ctx * measured.nll.shape[1] / measured.seconds
    longest = max(map(_interval, specs))
    return tuple(
        Row(
            kv=str(spec),
            **_nll_figures(measured.nll[i], measured.nll[0]),
            **_kld_figures(measured.kld[i].ravel(), measured.same_top[i].ravel()),
            **sizes[i]._asdict(),
            **_profiles(measured, i, ctx, _interval(spec) if _interval(spec) > 1 else longest),
            by_layer=_layer_errors(measured.squares[i]),
            tokens_per_second=float(speeds[i]),
        )
        for i, spec in enumerate(specs)
    )


def _interval(spec: CacheSpec) -> int:
    """Tokens after which the groups of K and of V of all layers begin anew together."""
    return math.lcm(*(side.interval for kind in kinds_of(spec) for side in (kind.k, kind.v)))


def _nll_figures(nll: np.ndarray, base_nll: np.ndarray) -> dict[str, Any]:
    """Of nll [c, n]."""
    perplexity = statistics.perplexity(nll.ravel())
    change = statistics.log_perplexity_change(nll.ravel(), base_nll.ravel())
    low, high = statistics.bootstrap_interval((nll - base_nll).mean(axis=1)) or (None, None)
    return {
        "ppl": perplexity.value,
        "ppl_stderr": perplexity.stderr,
        "delta_ln_ppl": change.value,
        "delta_ln_ppl_stderr": change.stderr,
        "delta_ln_ppl_low": low,
        "delta_ln_ppl_high": high,
        "probability_rms": statistics.root_mean_square((np.exp(-nll) - np.exp(-base_nll)).ravel()),
    }


def _kld_figures(kld: np.ndarray, same_top: np.ndarray) -> dict[str, float]:
    mean = statistics.mean(kld)
    return {
        "kld_mean": mean.value,
        "kld_stderr": mean.stderr,
        "kld_median": statistics.percentile(kld, 0.5),
        "kld_p99": statistics.percentile(kld, 0.99),
        "kld_p999": statistics.percentile(kld, 0.999),
        "kld_max": float(kld.max()),
        "same_top": statistics.share(same_top),
    }


def _profiles(measured: Measured, i: int, ctx: int, interval: int) -> dict[str, Any]:
    kld, change = measured.kld[i], measured.nll[i] - measured.nll[0]
    first = ctx - 1 - kld.shape[1]  # the last prediction that is scored stands at ctx - 2
    groups = by_group_position(kld, change, first, interval) if interval > 1 else None
    return {"by_position": by_position(kld, change, first), "by_group_position": groups}


def _layer_errors(squares: np.ndarray) -> LayerErrors | None:
    """Of squares [c, l, 3, 2]."""
    errors, values = np.moveaxis(squares.sum(axis=0), -1, 0)
    if not errors.size:
        return None
    k, v, output = (tuple(map(float, one)) for one in np.sqrt(errors / values).T)
    return LayerErrors(k=k, v=v, output=output)
