"""Measures several cache formats on one text: the same model, chunks and predictions for each."""

import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

import deltakv_jax
from deltakv_jax.attention import Implementation
from deltakv_jax.cache import Sides
from deltakv_jax.calibration import Calibration
from deltakv_jax.codec import CacheSpec, KVSpec, parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import protocol, results
from deltakv_jax.evaluation.layers import layer_squares
from deltakv_jax.evaluation.protocol import PROTOCOLS, Chunks, tokenize
from deltakv_jax.evaluation.results import Measured, Run, cache_size
from deltakv_jax.evaluation.scoring import Reads, TokenScores, chunk_hidden, piece_length, score
from deltakv_jax.evaluation.store import Store
from deltakv_jax.evaluation.texts import Text
from deltakv_jax.generation.saving import fingerprint
from deltakv_jax.model import Llama
from deltakv_jax.parallel.mesh import named
from deltakv_jax.parallel.placement import put, to_host
from deltakv_jax.parallel.sharding import BATCH, DATA, WHOLE
from deltakv_jax.weights import LoadedModel

T = TypeVar("T")

Progress = Callable[[int], None]
Program = Callable[[Llama, jax.Array], jax.Array]
DEFAULT_FORMATS = ("f16", "q8_0", "q4_0", "q4_0:rotate", "delta", "layered")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, and how.

    Attributes:
      specs: cache formats; differences and divergences are against the first.
      protocol: which predictions are scored, a name of `PROTOCOLS`.
      ctx: tokens of a chunk.
      chunks: how many to take from the start of the text; None for all.
      batch: chunks that are dispatched together. Changes no result.
      sequential: feed one token at a time, as decoding does.
      reads: what tokens attend to; "raw" is not cache-true.
      by_layer: also measure the errors of each layer.
      implementation: of attention to the cache.
      calibration: has the means for formats that take them off; without it they are zero.
    """

    specs: tuple[CacheSpec, ...]
    protocol: str = protocol.DEFAULT
    ctx: int = 512
    chunks: int | None = None
    batch: int = 8
    sequential: bool = False
    reads: Reads = "cache"
    by_layer: bool = False
    implementation: Implementation | None = None
    calibration: Calibration | None = None


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
    chosen = PROTOCOLS[settings.protocol]
    return protocol.cut(
        tokenize(loaded.tokenizer, text.content, chosen),
        chosen,
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
    store: Store | None = None,
) -> Run:
    """Measures every format on every chunk.

    Args:
      loaded: model and tokenizer.
      text: what the chunks were cut from.
      chunks: from `cut`.
      settings: formats and route.
      progress: told how many chunks were just run, once for each format.
      store: keeps each batch as soon as it is measured, and has those of an interrupted run.

    Raises:
      UserError: where the calibration is of another model, or logits are not finite.
    """
    if settings.calibration is not None:
        settings.calibration.check_model(fingerprint(loaded.model))
    batches = {} if store is None else store.batches()
    progress(sum(batch.nll.shape[1] for batch in batches.values()) * len(settings.specs))
    made = measure(loaded.model, chunks, settings, progress, batches, loaded.mesh)
    for first, batch in made:
        batches[first] = batch
        if store is not None:
            store.save(first, batch)
    measured = results.join([batches[first] for first in sorted(batches)])
    sizes = [cache_size(loaded.config, spec, settings.ctx) for spec in settings.specs]
    return Run(
        model=loaded.name,
        text=text.name,
        text_sha256=text.sha256,
        protocol=settings.protocol,
        reads=settings.reads,
        sequential=settings.sequential,
        ctx=settings.ctx,
        chunks=len(chunks.tokens),
        tokens_scored=chunks.scored,
        rows=results.rows(settings.specs, settings.ctx, measured, sizes),
    )


def identity(loaded: LoadedModel, text: Text, settings: Settings) -> dict[str, Any]:
    """What the figures of a run depend on, by the name that a user knows it by, for JSON."""
    return {
        "--model": loaded.name,
        "the model's weights": fingerprint(loaded.model)["weights_checksum"],
        "--text": text.name,
        "the text's content": text.sha256,
        "--protocol": settings.protocol,
        "--ctx": settings.ctx,
        "--chunks": settings.chunks,
        "--kv": [str(spec) for spec in settings.specs],
        "--kv-calibration": settings.calibration and settings.calibration.sha256,
        "--sequential": settings.sequential,
        "--attention": settings.implementation,
        "--reads": settings.reads,
        "--by-layer": settings.by_layer,
        "--mesh": loaded.mesh and named(loaded.mesh.shape),
        "the device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "deltakv_jax": deltakv_jax.__version__,
    }


def measure(
    model: Llama,
    chunks: Chunks,
    settings: Settings,
    progress: Progress,
    done: dict[int, Measured] | None = None,
    mesh: Mesh | None = None,
) -> Iterator[tuple[int, Measured]]:
    """Scores the chunks, `settings.batch` at a time, but for those in `done`; `mesh` has the model.

    Yields:
      The index of a batch's first chunk, and what the batch gives.
    """
    if not (missing := _missing(len(chunks.tokens), done or {}, settings.batch)):
        return
    centre = _centre(settings, mesh)
    programs = _programs(settings, centre, mesh)
    scorer = functools.partial(score, first=chunks.first, mesh=mesh)
    for program in programs:  # compiled and run once, so that no timing holds its compilation
        jax.block_until_ready(program(model, _placed(chunks.tokens[:1], mesh)[0]))
    for part in missing:
        batch = _placed(chunks.tokens[part.start : part.stop], mesh)
        tell = functools.partial(progress, len(part))
        timed = (_timed(program, model, batch, tell) for program in programs)
        hidden, seconds = zip(*timed, strict=True)
        by_chunk = zip(zip(*hidden, strict=True), batch, strict=True)
        scores = [scorer(model, states, tokens) for states, tokens in by_chunk]
        of_chunks = _of_chunks(scores, len(part), mesh)
        squares = _squares(model, batch, len(part), settings, centre, mesh)
        yield part.start, _on_host(of_chunks, squares, seconds, part.start, settings.specs)


def _placed(chunks: np.ndarray, mesh: Mesh | None) -> list[jax.Array]:
    """Chunks on the device, or on a mesh one for each row of devices, the last one repeated."""
    if mesh is None:
        return [jax.device_put(chunk) for chunk in chunks]
    rows = mesh.shape[DATA]
    padded = np.pad(chunks, ((0, -len(chunks) % rows), (0, 0)), mode="edge")
    return [put(mesh, BATCH, part) for part in np.split(padded, len(padded) // rows)]


def _of_chunks(made: Sequence[T], count: int, mesh: Mesh | None) -> list[T]:
    """What programs made, on the host, for each of so many chunks."""
    found = [jax.tree.map(to_host, one) for one in made]
    if mesh is not None:
        rows = range(mesh.shape[DATA])
        found = [jax.tree.map(operator.itemgetter(row), one) for one in found for row in rows]
    return found[:count]


def _missing(count: int, done: dict[int, Measured], batch: int) -> list[range]:
    """The chunks that no batch in `done` holds, in parts of at most `batch`."""
    held = {first + i for first, part in done.items() for i in range(part.nll.shape[1])}
    parts: list[range] = []
    for chunk in sorted(set(range(count)) - held):
        if parts and parts[-1].stop == chunk and len(parts[-1]) < batch:
            parts[-1] = range(parts[-1].start, chunk + 1)
        else:
            parts.append(range(chunk, chunk + 1))
    return parts


def _centre(settings: Settings, mesh: Mesh | None) -> Sides | None:
    """The means on every device."""
    if settings.calibration is None:
        return None
    return jax.tree.map(functools.partial(put, mesh, WHOLE), settings.calibration.centre)


def _programs(settings: Settings, centre: Sides | None, mesh: Mesh | None) -> list[Program]:
    piece = piece_length(settings.ctx, sequential=settings.sequential)
    make = functools.partial(
        chunk_hidden,
        centre=centre,
        piece=piece,
        reads=settings.reads,
        mesh=mesh,
        implementation=settings.implementation,
    )
    return [functools.partial(make, spec=spec) for spec in settings.specs]


def _timed(
    program: Program, model: Llama, batch: Sequence[jax.Array], tell: Callable[[], None]
) -> tuple[list[jax.Array], float]:
    """The hidden states of all chunks, all dispatched before the first is waited for."""
    start = time.perf_counter()
    hidden = jax.block_until_ready([program(model, tokens) for tokens in batch])
    seconds = time.perf_counter() - start
    tell()
    return hidden, seconds


def _squares(
    model: Llama,
    batch: Sequence[jax.Array],
    count: int,
    settings: Settings,
    centre: Sides | None,
    mesh: Mesh | None,
) -> np.ndarray:
    """Float64 [f c l 3 2], of no layers where they are not asked for."""
    if not settings.by_layer:
        return np.zeros((len(settings.specs), count, 0, 3, 2))
    piece = piece_length(settings.ctx, sequential=False)
    make = functools.partial(layer_squares, specs=settings.specs, piece=piece, mesh=mesh)
    squares = _of_chunks([make(model, tokens, centre) for tokens in batch], count, mesh)
    return np.stack(squares, axis=1).astype(np.float64)


def _on_host(
    scores: Sequence[TokenScores],
    squares: np.ndarray,
    seconds: Sequence[float],
    start: int,
    specs: Sequence[CacheSpec],
) -> Measured:
    for chunk, of_chunk in enumerate(scores, start + 1):
        _check_finite(chunk, of_chunk, specs)
    stack = lambda leaves, dtype: np.stack(leaves, axis=1).astype(dtype)
    nll, kld, same_top, _ = zip(*scores, strict=True)
    return Measured(
        nll=stack(nll, np.float64),
        kld=stack(kld, np.float64),
        same_top=stack(same_top, bool),
        squares=squares,
        seconds=np.array(seconds),
    )


def _check_finite(chunk: int, scores: TokenScores, specs: Sequence[CacheSpec]) -> None:
    for spec, finite in zip(specs, scores.finite, strict=True):
        if not np.all(finite):
            raise UserError(
                f"logits are not finite in chunk {chunk} with KV {spec}; "
                "try a wider format or --weights f32"
            )
