"""What a `Coherence` says: a table for people, JSON for programs."""

import dataclasses
import json

from rich.table import Table

from deltakv_jax.codec.packing import BLOCK
from deltakv_jax.evaluation import report
from deltakv_jax.evaluation.capture import ARRAYS
from deltakv_jax.evaluation.coherence import Coherence, Row

NAMES: dict[str, str] = dict(zip(ARRAYS, ("K before RoPE", "K after RoPE", "V"), strict=True))
COLUMNS = (
    "of",
    "Δx/x",
    "r",
    "mean %",
    "range Δx/x",
    "q4_0",
    "delta",
    "centred q4_0",
    "delta/q4_0",
)


def table(found: Coherence) -> Table:
    """Three rows for each layer, and three for all of them; less than 100 columns wide."""
    made = report.plain_table("layer", *COLUMNS)
    for row in found.rows:
        made.add_row(*_cells(row), end_section=row.array == ARRAYS[-1])
    return made


def legend(found: Coherence) -> str:
    """What the columns of the table mean, and why some may be empty."""
    meaning = (
        "Δx/x: RMS of x_t - x_{t-1} by RMS of x_t (1.41: nothing in common). r: correlation of "
        "neighbours about the channel mean (above 0.5 differences beat the mean). mean %: share "
        "of the energy that is the channel means'. range: max - min over a block of 32, averaged. "
        "q4_0, delta, centred q4_0: mean squared error by mean square; delta has a float16 "
        f"keyframe every {found.interval} tokens, centred is about the text's own channel means."
    )
    if found.head_dim % BLOCK == 0:
        return meaning
    return f"{meaning} No ranges and errors: head_dim {found.head_dim} has no blocks of {BLOCK}."


def to_json(found: Coherence) -> str:
    """The figures and what they were made with; a run in a list, as all measurements have them."""
    document = {"runs": [dataclasses.asdict(found)], **report.surroundings()}
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    share = None if row.mean_energy is None else 100 * row.mean_energy
    return (
        "all" if row.layer is None else str(row.layer),
        NAMES[row.array],
        _shown(row.relative_delta, ".3f"),
        _shown(row.correlation, "+.3f"),
        _shown(share, ".1f"),
        _shown(row.range_ratio, ".3f"),
        *(_shown(mse, ".5f") for mse in (row.q4_0_mse, row.delta_mse, row.centred_q4_0_mse)),
        _shown(row.delta_by_q4_0, ".3f"),
    )


def _shown(figure: float | None, spec: str) -> str:
    return "-" if figure is None else format(figure, spec)
