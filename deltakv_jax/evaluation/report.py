"""Runs for the reader: a table for people, JSON for programs."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import jax
from rich import box
from rich.table import Table

import deltakv_jax
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation.results import Row, Run
from deltakv_jax.evaluation.statistics import Estimate, percent

COLUMNS = ("KV", "perplexity", "change %", "KLD", "top %", "bits", "bytes", "tok/s")


def table(run: Run) -> Table:
    """A row for each format, in the order asked for; 80 columns wide unless figures are long."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    made.add_column(COLUMNS[0], overflow="fold")
    for name in COLUMNS[1:]:
        made.add_column(name, justify="right", no_wrap=True)
    for row in run.rows:
        made.add_row(*_cells(row))
    return made


def legend(run: Run) -> str:
    """What the columns of the table mean."""
    return (
        "± is one standard error. Change (paired), KLD (mean KL divergence, nats) and top (same "
        f"likeliest token) are against {run.rows[0].kv}. Bits per stored value and bytes are those "
        f"of a cache for one sequence of {run.ctx} tokens."
    )


def _cells(row: Row) -> tuple[str, ...]:
    change = percent(Estimate(row.delta_ln_ppl, row.delta_ln_ppl_stderr))
    return (
        row.kv,
        f"{row.ppl:.4f} ±{row.ppl_stderr:.4f}",
        f"{change.value:+.2f} ±{change.stderr:.2f}",
        f"{row.kld_mean:.5f}" if row.kld_mean >= 1e-4 else f"{row.kld_mean:.2g}",
        f"{100 * row.same_top:.1f}",
        f"{row.bits_per_value:.4g}",
        str(row.kv_bytes),
        f"{row.tokens_per_second:.0f}",
    )


def document(runs: Sequence[Run]) -> dict:
    """All runs and what they were made with, as plain values for JSON."""
    return {
        "runs": [dataclasses.asdict(run) for run in runs],
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "version": deltakv_jax.__version__,
    }


def to_json(runs: Sequence[Run]) -> str:
    """`document` as text; a figure that JSON cannot hold (NaN) is an error."""
    return json.dumps(document(runs), indent=2, allow_nan=False) + "\n"


def check_writable(path: Path) -> None:
    """Raises UserError where no file can be made at `path`; better now than after the run."""
    if path.is_dir():
        raise UserError(f"--json {path} is a folder; give a file's name")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"--json {path}: cannot write in the folder {str(path.parent)!r}")


def write_atomically(path: Path, content: str) -> None:
    """Writes a file that is at no time incomplete: what was there stays until it is replaced."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(content, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
