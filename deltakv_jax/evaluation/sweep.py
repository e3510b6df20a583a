"""The same formats and texts at several contexts: which cells there are, and their table."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rich.table import Table

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import report, runner
from deltakv_jax.evaluation.protocol import Chunks
from deltakv_jax.evaluation.results import Run
from deltakv_jax.evaluation.runner import Settings
from deltakv_jax.evaluation.texts import Text
from deltakv_jax.weights import LoadedModel

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384)


class Cell(NamedTuple):
    """What is measured in one run: a text in chunks of one context."""

    text: Text
    settings: Settings
    chunks: Chunks


def cells(
    loaded: LoadedModel,
    texts: Sequence[Text],
    settings: Sequence[Settings],
    say: Callable[[str], None],
) -> list[Cell]:
    """Every text at every context of which it has a chunk; `say` is told of the others."""
    found = list(_cut(loaded, texts, settings, say))
    if not found:
        raise UserError("nothing is left to measure; give a longer text or a smaller --ctx")
    return found


def _cut(
    loaded: LoadedModel,
    texts: Sequence[Text],
    settings: Sequence[Settings],
    say: Callable[[str], None],
) -> Iterator[Cell]:
    for text in texts:
        for one in settings:
            try:
                yield Cell(text, one, runner.cut(loaded, text, one))
            except UserError as error:
                say(f"left out {text.name} at --ctx {one.ctx}: {error}")


def by_text(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs of each model on each text, in order of appearance, by rising context."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.model, run.text, run.text_sha256), []).append(run)
    return [sorted(of_text, key=lambda run: run.ctx) for of_text in found.values()]


def table(runs: Sequence[Run]) -> Table:
    """The runs of one text: a column for each context, the base's perplexity and all changes."""
    made = report.plain_table("KV", *(f"ctx {run.ctx}" for run in runs))
    base, *others = runs[0].rows
    made.add_row(f"{base.kv} perplexity", *(f"{run.rows[0].ppl:.4f}" for run in runs))
    for i, row in enumerate(others, 1):
        made.add_row(row.kv, *(report.change(run.rows[i]) for run in runs))
    return made


def title(run: Run) -> str:
    """What stands above the table of a text."""
    return (
        f"{run.model} on {run.text} ({run.protocol}): change of perplexity in % from "
        f"{run.rows[0].kv}, ± one standard error (paired)"
    )
