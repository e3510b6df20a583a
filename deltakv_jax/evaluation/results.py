"""What a run gives: scores of tokens as they come from the device, and the figures made of them."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float64

from deltakv_jax.cache import bits_per_value, cache_bytes
from deltakv_jax.codec import KVSpec
from deltakv_jax.config import LlamaConfig
from deltakv_jax.evaluation import statistics
from deltakv_jax.generation.steps import empty_cache


class Measured(NamedTuple):
    """What a batch of chunks gives, on the host: formats f, chunks c, scored predictions n."""

    nll: Float64[np.ndarray, "f c n"]
    kld: Float64[np.ndarray, "f c n"]
    same_top: Bool[np.ndarray, "f c n"]
    seconds: Float64[np.ndarray, " f"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The figures of one format. `ppl_stderr` and its like are one standard error.

    Attributes:
      kv: the canonical spec.
      ppl: perplexity, exp of the mean nll.
      delta_ln_ppl: ln(ppl / ppl of the first format); its error is paired.
      kld_mean: mean KL divergence of the first format from this one, in nats a token.
      kld_p999: what 99.9 % of the tokens' divergences stay below.
      same_top: share of the predictions whose likeliest token is the first format's.
      bits_per_value: of a one-sequence cache made for exactly ctx tokens, everything counted.
      kv_bytes: of the same cache.
      tokens_per_second: through the model and the cache, without compiling and scoring.
    """

    kv: str
    ppl: float
    ppl_stderr: float
    delta_ln_ppl: float
    delta_ln_ppl_stderr: float
    kld_mean: float
    kld_p999: float
    same_top: float
    bits_per_value: float
    kv_bytes: int
    tokens_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One model on one text, a row for each format."""

    model: str
    text: str
    text_sha256: str
    ctx: int
    chunks: int
    tokens_scored: int
    rows: tuple[Row, ...]


def join(batches: Sequence[Measured]) -> Measured:
    """The chunks of all batches, one after the other."""
    nll, kld, same_top, seconds = zip(*batches, strict=True)
    chunks = lambda parts: np.concatenate(parts, axis=1)
    return Measured(chunks(nll), chunks(kld), chunks(same_top), np.sum(seconds, axis=0))


class Size(NamedTuple):
    """What a one-sequence cache made for exactly one chunk takes, all but its counters."""

    bits_per_value: float
    kv_bytes: int


def cache_size(config: LlamaConfig, spec: KVSpec, ctx: int) -> Size:
    """The size of the cache that a chunk of `ctx` tokens fills; nothing is allocated."""
    cache = jax.eval_shape(lambda: empty_cache(config, spec, capacity=ctx))
    return Size(bits_per_value(cache), cache_bytes(cache))


def rows(
    specs: Sequence[KVSpec], ctx: int, measured: Measured, sizes: Sequence[Size]
) -> tuple[Row, ...]:
    """The figures of each format, over all tokens of all chunks; the first format is the base."""
    nll, kld, same_top = (leaf.reshape(len(specs), -1) for leaf in measured[:3])
    speeds = ctx * measured.nll.shape[1] / measured.seconds
    return tuple(
        Row(
            kv=str(spec),
            **_nll_figures(nll[i], nll[0]),
            **_kld_figures(kld[i], same_top[i]),
            **sizes[i]._asdict(),
            tokens_per_second=float(speeds[i]),
        )
        for i, spec in enumerate(specs)
    )


def _nll_figures(nll, base_nll) -> dict[str, float]:
    perplexity = statistics.perplexity(nll)
    change = statistics.log_perplexity_change(nll, base_nll)
    return {
        "ppl": perplexity.value,
        "ppl_stderr": perplexity.stderr,
        "delta_ln_ppl": change.value,
        "delta_ln_ppl_stderr": change.stderr,
    }


def _kld_figures(kld, same_top) -> dict[str, float]:
    return {
        "kld_mean": statistics.mean(kld).value,
        "kld_p999": statistics.percentile(kld, 0.999),
        "same_top": statistics.share(same_top),
    }
