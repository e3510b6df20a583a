"""Runs for the reader: a table for people, JSON for programs."""

import dataclasses
import json
import platform
from collections.abc import Sequence

import jax
from jax.sharding import Mesh
from rich import box
from rich.table import Table

import deltakv_jax
from deltakv_jax.calibration import Calibration
from deltakv_jax.evaluation.results import Row, Run
from deltakv_jax.parallel.mesh import named

COLUMNS = ("KV", "perplexity", "change %", "KLD", "top %", "bits", "bytes", "tok/s")
LAYERS = "Relative error of K / V / attention output in each layer, in percent:"
KLD_COLUMNS = ("KLD median", "99 %", "99.9 %", "max")


def table(run: Run) -> Table:
    """A row for each format, in the order asked for; 80 columns wide unless figures are long."""
    made = plain_table(*COLUMNS)
    for row in run.rows:
        made.add_row(*_cells(row))
    return made


def legend(run: Run) -> str:
    """What the columns of the table mean."""
    return (
        "± is one standard error. Change (paired), KLD (mean KL divergence, nats) and top (same "
        f"likeliest token) are against {run.rows[0].kv}. Bits per stored value and bytes are those "
        f"of a cache for one sequence of {run.ctx} tokens. The 95 % interval is that of resampled "
        "chunks; prob. RMS is the change of the true token's probability."
    )


def details(run: Run) -> Table:
    """What the mean hides: the interval of the change, and the tail of the divergences."""
    made = plain_table("KV", "change %, 95 % interval", *KLD_COLUMNS, "prob. RMS %")
    for row in run.rows:
        klds = (row.kld_median, row.kld_p99, row.kld_p999, row.kld_max)
        interval = "none" if row.change_interval is None else span(row.change_interval)
        made.add_row(row.kv, interval, *map(nats, klds), f"{100 * row.probability_rms:.2f}")
    return made


def layers(run: Run) -> Table:
    """Relative errors of K, V and the attention output in each layer, in percent."""
    made = plain_table("layer", *(row.kv for row in run.rows if row.by_layer))
    columns = [
        list(zip(row.by_layer.k, row.by_layer.v, row.by_layer.output, strict=True))
        for row in run.rows
        if row.by_layer
    ]
    for layer, errors in enumerate(zip(*columns, strict=True)):
        cells = (" / ".join(f"{100 * error:.2f}" for error in one) for one in errors)
        made.add_row(str(layer), *cells)
    return made


def plain_table(first: str, *others: str) -> Table:
    """An empty table: names on the left, figures on the right, no more lines than needed."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    made.add_column(first, overflow="fold")
    for name in others:
        made.add_column(name, justify="right", no_wrap=True)
    return made


def change(row: Row) -> str:
    """The change of perplexity in percent, ± one standard error."""
    return f"{row.change.value:+.2f} ±{row.change.stderr:.2f}"


def span(interval: tuple[float, float]) -> str:
    """An interval of percent."""
    return "{:+.2f} … {:+.2f}".format(*interval)


def nats(kld: float) -> str:
    """A KL divergence."""
    return f"{kld:.5f}" if kld >= 1e-4 else f"{kld:.2g}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.kv,
        f"{row.ppl:.4f} ±{row.ppl_stderr:.4f}",
        change(row),
        nats(row.kld_mean),
        f"{100 * row.same_top:.1f}",
        f"{row.bits_per_value:.4g}",
        str(row.kv_bytes),
        f"{row.tokens_per_second:.0f}",
    )


def document(
    runs: Sequence[Run], mesh: Mesh | None = None, calibration: Calibration | None = None
) -> dict:
    """All runs and what they were made with, as plain values for JSON."""
    return {"runs": [dataclasses.asdict(run) for run in runs], **surroundings(mesh, calibration)}


def surroundings(
    mesh: Mesh | None = None, calibration: Calibration | None = None
) -> dict[str, str]:
    """What figures were made with: calibration, the device or the mesh of such, the versions."""
    return {
        **({} if calibration is None else {"kv_calibration": calibration.sha256}),
        "device": jax.devices()[0].device_kind,
        **({} if mesh is None else {"mesh": named(mesh.shape)}),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "version": deltakv_jax.__version__,
    }


def to_json(
    runs: Sequence[Run], mesh: Mesh | None = None, calibration: Calibration | None = None
) -> str:
    """`document` as text; a figure that JSON cannot hold (NaN) is an error."""
    return json.dumps(document(runs, mesh, calibration), indent=2, allow_nan=False) + "\n"
