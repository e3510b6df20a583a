"""The runs on a model that decide what was claimed of models: planned first, then measured.

On each text the same chunks under every format, of 512 tokens and of 2048; a few with attention
that reads raw tokens; and the coherence of K and V. What a model or a text cannot serve is left
out, with the reason.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import coherence, runner
from deltakv_jax.evaluation.capture import Captured
from deltakv_jax.evaluation.coherence import Coherence
from deltakv_jax.evaluation.protocol import Chunks
from deltakv_jax.evaluation.results import Row, Run
from deltakv_jax.evaluation.runner import Progress, Settings
from deltakv_jax.evaluation.scoring import Reads
from deltakv_jax.evaluation.store import Store
from deltakv_jax.evaluation.texts import Text
from deltakv_jax.weights import LoadedModel

BASE, PLAIN = "f16", "q4_0"
DELTA = {16: "delta:interval=16", 32: "delta", 64: "delta:interval=64"}  # by keyframe interval
INTERVAL = 32
COHERENCE_CHUNKS = 16


class Part(NamedTuple):
    """What is run on every text.

    Attributes:
      formats: the first is the base.
      ctx: tokens of a chunk, less where the model's context is and `shorter`.
      shorter: whether chunks of the model's context will do.
      reads: what tokens attend to.
      most: chunks, however many are asked for.
    """

    formats: tuple[str, ...]
    ctx: int
    shorter: bool = False
    reads: Reads = "cache"
    most: int | None = None


PARTS = {
    "short": Part((BASE, PLAIN, *DELTA.values()), 512, shorter=True),
    "long": Part((BASE, PLAIN, DELTA[INTERVAL]), 2048),
    # a few chunks, since each of them gives the same
    "raw": Part((BASE, PLAIN, DELTA[INTERVAL]), 512, shorter=True, reads="raw", most=8),
}


class Job(NamedTuple):
    """One run: a part on one text."""

    part: str
    text: Text
    settings: Settings
    chunks: Chunks


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
      jobs: the runs.
      samples: texts with the chunks whose K and V are captured.
      missing: why a part lacks a text, or all of them.
    """

    jobs: tuple[Job, ...]
    samples: tuple[tuple[Text, Chunks], ...]
    missing: Mapping[str, str]

    @property
    def units(self) -> int:
        """Chunks times formats, and two for each chunk captured, which is gone over twice."""
        runs = sum(len(job.chunks.tokens) * len(job.settings.specs) for job in self.jobs)
        return runs + sum(2 * len(chunks.tokens) for _, chunks in self.samples)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes:
      runs: of each part, one for each text.
      coherence: of K and V, one for each text.
      missing: see `Plan`.
    """

    runs: Mapping[str, tuple[Run, ...]]
    coherence: tuple[Coherence, ...]
    missing: Mapping[str, str]


def plan(loaded: LoadedModel, texts: Sequence[Text], limit: int) -> Plan:
    """The runs that this model can do on these texts, of at most `limit` chunks each.

    Raises:
      UserError: where a text has no chunk of 512 tokens, or of the model's context if that is less.
    """
    samples = [(text, _sample(loaded, text)) for text in texts]
    jobs: list[Job] = []
    missing: dict[str, str] = {}
    for name, part in PARTS.items():
        if reason := _unfit(part, loaded):
            missing[name] = reason
            continue
        of_part = [job for text in texts if (job := _job(name, loaded, text, limit)) is not None]
        jobs += of_part
        if absent := [text.name for text in texts if text not in {job.text for job in of_part}]:
            missing[name] = f"Too short for a chunk of {part.ctx} tokens: {', '.join(absent)}."
    return Plan(tuple(jobs), tuple(samples), missing)


def _sample(loaded: LoadedModel, text: Text) -> Chunks:
    ctx = _ctx(PARTS["short"], loaded)
    try:
        return runner.cut(loaded, text, Settings(specs=(), ctx=ctx, chunks=COHERENCE_CHUNKS))
    except UserError:
        found = f"--text {text.name} has no chunk of {ctx} tokens"
        raise UserError(f"{found}; give a longer text") from None


def _ctx(part: Part, loaded: LoadedModel) -> int:
    return min(part.ctx, loaded.config.context) if part.shorter else part.ctx


def _unfit(part: Part, loaded: LoadedModel) -> str | None:
    """Why the model cannot do this part, or None."""
    if _ctx(part, loaded) > loaded.config.context:
        return f"No chunks of {part.ctx} tokens: the model's context is {loaded.config.context}."
    try:
        for name in part.formats:
            parse_spec(name).check(loaded.config.head_dim)
    except UserError as error:
        return f"Not with this model: {error}."
    return None


def _job(name: str, loaded: LoadedModel, text: Text, limit: int) -> Job | None:
    """None where the text is too short."""
    part = PARTS[name]
    settings = Settings(
        specs=tuple(map(parse_spec, part.formats)),
        ctx=_ctx(part, loaded),
        chunks=min(limit, part.most or limit),
        reads=part.reads,
    )
    try:
        return Job(name, text, settings, runner.cut(loaded, text, settings))
    except UserError:
        return None


def carry_out(
    loaded: LoadedModel,
    planned: Plan,
    *,
    progress: Progress,
    open_store: Callable[[Job], Store | None],
) -> Evidence:
    """Measures all that is planned.

    Args:
      loaded: the model.
      planned: of `plan`.
      progress: told of units done, see `Plan.units`.
      open_store: gives the checkpoints of a job.
    """
    runs: dict[str, list[Run]] = {name: [] for name in PARTS}
    for job in planned.jobs:
        run = runner.evaluate(loaded, job.text, job.chunks, job.settings, progress, open_store(job))
        runs[job.part].append(run)
    found = [_coherence(loaded, *sample, progress) for sample in planned.samples]
    by_part = {name: tuple(of_part) for name, of_part in runs.items()}
    return Evidence(by_part, tuple(found), planned.missing)


def _coherence(loaded: LoadedModel, text: Text, chunks: Chunks, progress: Progress) -> Coherence:
    count, ctx = chunks.tokens.shape
    return Coherence(
        model=loaded.name,
        text=text.name,
        text_sha256=text.sha256,
        ctx=ctx,
        chunks=count,
        head_dim=loaded.config.head_dim,
        interval=INTERVAL,
        rows=coherence.rows(Captured(loaded.model, chunks.tokens, progress), INTERVAL),
    )


def row_of(run: Run, kv: str) -> Row:
    """The figures of one format."""
    return {row.kv: row for row in run.rows}[kv]
