"""Candidates measured on the same chunks, paired, by the package's own scoring and statistics."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import statistics
from deltakv_jax.evaluation.protocol import DEFAULT, PROTOCOLS, Chunks, cut, tokenize
from deltakv_jax.evaluation.scoring import score
from deltakv_jax.evaluation.texts import Text
from deltakv_jax.weights import LoadedModel
from scripts.bench.codecs.candidates import EXACT, both
from scripts.bench.codecs.groups import Predicted
from scripts.bench.codecs.passes import (
    Candidate,
    Simulated,
    hidden_states,
    layer_choices,
    layer_squares,
)
from scripts.bench.codecs.sides import Known

BASE = both("f32", EXACT)
CONTEXTS = (512, 2048, 8192)
_TOKENS = 4096  # run at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """One candidate on one text, against exact caches; errors are one standard error.

    Attributes:
      family, candidate: which one.
      note: what the figures mean.
      bits: of a value at the text's own context, everything counted.
      bits_at: the same at each of `CONTEXTS`.
      kld_mean, kld_stderr, kld_p999: KL divergence, nats.
      kld_of_chunks: the mean of each chunk, so that two candidates can be compared in pairs.
      same_top: share of predictions whose likeliest token is the same.
      delta_ln_ppl, delta_ln_ppl_stderr: paired.
      delta_ln_ppl_low, delta_ln_ppl_high: its 95 % interval, by resampling chunks; None for one.
      k_errors, v_errors, output_errors: of each layer, relative; None where not asked for.
      k_choices, v_choices: of each layer, how often each coefficient is chosen; None where there is
        nothing to choose.
    """

    family: str
    candidate: str
    note: str
    bits: float
    bits_at: tuple[float, ...]
    kld_mean: float
    kld_stderr: float
    kld_p999: float
    kld_of_chunks: tuple[float, ...]
    same_top: float
    delta_ln_ppl: float
    delta_ln_ppl_stderr: float
    delta_ln_ppl_low: float | None
    delta_ln_ppl_high: float | None
    k_errors: tuple[float, ...] | None = None
    v_errors: tuple[float, ...] | None = None
    output_errors: tuple[float, ...] | None = None
    k_choices: tuple[tuple[float, ...], ...] | None = None
    v_choices: tuple[tuple[float, ...], ...] | None = None


def all_chunks(loaded: LoadedModel, text: Text, ctx: int) -> Chunks:
    """The chunks of a text, as llama.cpp cuts it."""
    protocol = PROTOCOLS[DEFAULT]
    tokens = tokenize(loaded.tokenizer, text.content, protocol)
    return cut(tokens, protocol, ctx=ctx, bos_id=loaded.tokenizer.bos_id, limit=None)


class Bench:
    """A model on the chunks of a text; the exact model's hidden states are kept."""

    def __init__(self, loaded: LoadedModel, chunks: Chunks, known: Known):
        """Runs the exact model; `known` as in `hidden_states`."""
        self._loaded, self._chunks, self._known = loaded, chunks, known
        at_once = max(1, _TOKENS // chunks.tokens.shape[1])
        split = range(0, len(chunks.tokens), at_once)
        self._batches = [chunks.tokens[i : i + at_once] for i in split]
        self._base = list(self._hidden(BASE))

    def measure(self, candidate: Candidate, *, by_layer: bool = False) -> Figures:
        """The candidate's figures; `by_layer` adds the errors of each layer."""
        nll, kld, same_top = self._scores(candidate)
        config, ctx = self._loaded.config, self._chunks.tokens.shape[1]
        bits = functools.partial(candidate.bits, config.head_dim, config.layers)
        divergence = statistics.mean(kld.ravel())
        change = nll[1] - nll[0]
        changed = statistics.mean(change.ravel())
        low, high = statistics.bootstrap_interval(change.mean(axis=1)) or (None, None)
        return Figures(
            family=candidate.family,
            candidate=candidate.name,
            note=candidate.note,
            bits=bits(ctx),
            bits_at=tuple(bits(at) for at in CONTEXTS),
            kld_mean=divergence.value,
            kld_stderr=divergence.stderr,
            kld_p999=statistics.percentile(kld.ravel(), 0.999),
            kld_of_chunks=tuple(float(f"{one:.6g}") for one in kld.mean(axis=1)),
            same_top=statistics.share(same_top.ravel()),
            delta_ln_ppl=changed.value,
            delta_ln_ppl_stderr=changed.stderr,
            delta_ln_ppl_low=low,
            delta_ln_ppl_high=high,
            **(self._layer_errors(candidate) if by_layer else {}),
            k_choices=self._choices("k", candidate),
            v_choices=self._choices("v", candidate),
        )

    def _scores(self, candidate: Candidate) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nll of base and candidate [2 c n], divergence and same top [c n]."""
        scorer = functools.partial(score, self._loaded.model, first=self._chunks.first)
        tokens = map(jax.device_put, self._chunks.tokens)
        states = zip(self._base, self._hidden(candidate), tokens, strict=True)
        made = [jax.device_get(scorer((exact, its), chunk)) for exact, its, chunk in states]
        nll, kld, same_top, finite = (np.stack(one, axis=1) for one in zip(*made, strict=True))
        if not finite.all():
            raise UserError(f"logits are not finite with {candidate.name}")
        return nll.astype(np.float64), kld[1].astype(np.float64), same_top[1]

    def _hidden(self, candidate: Candidate) -> Iterator[jax.Array]:
        run = functools.partial(hidden_states, self._loaded.model, candidate=candidate)
        return (chunk for batch in self._batches for chunk in run(batch, self._known))

    def _choices(self, name: str, candidate: Candidate) -> tuple[tuple[float, ...], ...] | None:
        side = getattr(candidate, name) if isinstance(candidate, Simulated) else None
        if not isinstance(side, Predicted):
            return None
        run = functools.partial(layer_choices, self._loaded.model, side=side, name=name)
        shares = [np.asarray(run(batch, self._known)) for batch in self._batches]
        return tuple(map(tuple, np.mean(shares, axis=0).tolist()))

    def _layer_errors(self, candidate: Candidate) -> dict[str, tuple[float, ...]]:
        run: Callable = functools.partial(layer_squares, self._loaded.model, candidate=candidate)
        squares = sum(np.asarray(run(batch, self._known), np.float64) for batch in self._batches)
        errors, values = np.moveaxis(np.asarray(squares), -1, 0)
        names = ("k_errors", "v_errors", "output_errors")
        columns = np.sqrt(errors / values).T
        return {name: tuple(one.tolist()) for name, one in zip(names, columns, strict=True)}
