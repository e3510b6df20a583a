"""Measures several cache formats on one text: the same model, chunks and predictions for each."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from deltakv_jax.codec import KVSpec, parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation.protocol import Chunks, llama_cpp_chunks, tokenize
from deltakv_jax.evaluation.results import Measured, Run, cache_size, join, rows
from deltakv_jax.evaluation.scoring import TokenScores, chunk_hidden, piece_length, score
from deltakv_jax.evaluation.texts import Text
from deltakv_jax.model import Llama
from deltakv_jax.weights import LoadedModel

Progress = Callable[[int], None]
Program = Callable[[Llama, jax.Array], jax.Array]
DEFAULT_FORMATS = ("f16", "q8_0", "q4_0", "q4_0:rotate", "delta")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, and how.

    Attributes:
      specs: cache formats; differences and divergences are against the first.
      ctx: tokens of a chunk.
      chunks: how many to take from the start of the text; None for all.
      batch: chunks that are dispatched together. Changes no result.
      sequential: feed one token at a time, as decoding does.
    """

    specs: tuple[KVSpec, ...]
    ctx: int = 512
    chunks: int | None = None
    batch: int = 8
    sequential: bool = False


def default_specs(head_dim: int) -> tuple[tuple[KVSpec, ...], list[str]]:
    """The default formats that hold this head_dim, and a line on each that does not."""
    kept, left_out = [], []
    for name in DEFAULT_FORMATS:
        spec = parse_spec(name)
        try:
            spec.check(head_dim)
            kept.append(spec)
        except UserError as error:
            left_out.append(f"left out {name}: {error}")
    return tuple(kept), left_out


def cut(loaded: LoadedModel, text: Text, settings: Settings) -> Chunks:
    """The chunks of `text` that `settings` asks for."""
    return llama_cpp_chunks(
        tokenize(loaded.tokenizer, text.content),
        ctx=settings.ctx,
        bos_id=loaded.tokenizer.bos_id,
        limit=settings.chunks,
    )


def evaluate(
    loaded: LoadedModel,
    text: Text,
    chunks: Chunks,
    settings: Settings,
    progress: Progress = lambda chunks: None,
) -> Run:
    """Measures every format on every chunk.

    Args:
      loaded: model and tokenizer.
      text: what the chunks were cut from.
      chunks: from `cut`.
      settings: formats and route.
      progress: told how many chunks were just run, once for each format.
    """
    sizes = [cache_size(loaded.config, spec, settings.ctx) for spec in settings.specs]
    measured = join(list(measure(loaded.model, chunks, settings, progress)))
    return Run(
        model=loaded.name,
        text=text.name,
        text_sha256=text.sha256,
        ctx=settings.ctx,
        chunks=len(chunks.tokens),
        tokens_scored=chunks.scored,
        rows=rows(settings.specs, settings.ctx, measured, sizes),
    )


def measure(
    model: Llama, chunks: Chunks, settings: Settings, progress: Progress
) -> Iterator[Measured]:
    """Scores the chunks, `settings.batch` at a time."""
    programs = [_warm(program, model, chunks) for program in _programs(settings)]
    for start in range(0, len(chunks.tokens), settings.batch):
        batch = [jax.device_put(chunk) for chunk in chunks.tokens[start:][: settings.batch]]
        timed = (_timed(program, model, batch, progress) for program in programs)
        hidden, seconds = zip(*timed, strict=True)
        by_chunk = zip(zip(*hidden, strict=True), batch, strict=True)
        scores = [score(model, states, chunk, first=chunks.first) for states, chunk in by_chunk]
        yield _on_host(jax.device_get(scores), seconds, start, settings.specs)


def _programs(settings: Settings) -> list[Program]:
    piece = piece_length(settings.ctx, sequential=settings.sequential)
    return [functools.partial(chunk_hidden, spec=spec, piece=piece) for spec in settings.specs]


def _warm(program: Program, model: Llama, chunks: Chunks) -> Program:
    """`program`, compiled and run once, so that no timing holds its compilation."""
    jax.block_until_ready(program(model, jax.device_put(chunks.tokens[0])))
    return program


def _timed(
    program: Program, model: Llama, batch: Sequence[jax.Array], progress: Progress
) -> tuple[list[jax.Array], float]:
    """The hidden states of each chunk, all dispatched before the first is waited for."""
    start = time.perf_counter()
    hidden = jax.block_until_ready([program(model, chunk) for chunk in batch])
    seconds = time.perf_counter() - start
    progress(len(batch))
    return hidden, seconds


def _on_host(
    scores: Sequence[TokenScores], seconds: Sequence[float], start: int, specs: Sequence[KVSpec]
) -> Measured:
    for chunk, of_chunk in enumerate(scores, start + 1):
        _check_finite(chunk, of_chunk, specs)
    stack = lambda leaves, dtype: np.stack(leaves, axis=1).astype(dtype)
    nll, kld, same_top, _ = zip(*scores, strict=True)
    return Measured(
        stack(nll, np.float64), stack(kld, np.float64), stack(same_top, bool), np.array(seconds)
    )


def _check_finite(chunk: int, scores: TokenScores, specs: Sequence[KVSpec]) -> None:
    for spec, finite in zip(specs, scores.finite, strict=True):
        if not np.all(finite):
            raise UserError(
                f"logits are not finite in chunk {chunk} with KV {spec}; "
                "try a wider format or --dtype f32"
            )
