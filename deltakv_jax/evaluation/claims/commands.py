"""What to run for the same numbers, and on how much they stand."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from deltakv_jax.evaluation.coherence import Coherence
from deltakv_jax.evaluation.results import Run


class Asked(NamedTuple):
    """What the command line named.

    Attributes:
      model: the options that name it.
      texts: as they were given, by the names that they have in a run.
    """

    model: str
    texts: Mapping[str, str]


def perplexity_commands(runs: Sequence[Run], asked: Asked) -> tuple[str, ...]:
    """One for each run, since texts differ in how many chunks they have."""
    return tuple(_perplexity(run, asked) for run in runs)


def _perplexity(run: Run, asked: Asked) -> str:
    reads = f" --reads {run.reads}" if run.reads != "cache" else ""
    return (
        f"python scripts/perplexity.py {asked.model} --text {asked.texts[run.text]} "
        f"--ctx {run.ctx} --chunks {run.chunks}{reads} --kv {' '.join(row.kv for row in run.rows)}"
    )


def coherence_commands(coherence: Sequence[Coherence], asked: Asked) -> tuple[str, ...]:
    """One for each text."""
    return tuple(
        f"python scripts/coherence.py {asked.model} --text {asked.texts[found.text]} "
        f"--ctx {found.ctx} --chunks {found.chunks} --interval {found.interval}"
        for found in coherence
    )


def extent(found: Sequence[Run] | Sequence[Coherence]) -> str:
    """The number of chunks, their size and the text of each."""
    each = (f"{one.chunks} chunks of {one.ctx} tokens of {one.text}" for one in found)
    return ", ".join(each) or "nothing was run"
