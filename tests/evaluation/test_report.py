"""The table and the JSON of a run."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

import deltakv_jax
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import report
from deltakv_jax.evaluation.results import Row, Run

BASE = Row(
    kv="f16",
    ppl=4.0,
    ppl_stderr=0.1,
    delta_ln_ppl=0.0,
    delta_ln_ppl_stderr=0.0,
    kld_mean=0.0,
    kld_p999=0.0,
    same_top=1.0,
    bits_per_value=16.0,
    kv_bytes=1_048_576,
    tokens_per_second=12345.6,
)
OTHER = Row(
    kv="delta:interval=16/q4_0:rotate",
    ppl=4.2,
    ppl_stderr=0.1,
    delta_ln_ppl=0.0487901641694,
    delta_ln_ppl_stderr=0.002,
    kld_mean=0.03456,
    kld_p999=0.7,
    same_top=0.92345,
    bits_per_value=5.046875,
    kv_bytes=330_000,
    tokens_per_second=11111.1,
)
RUN = Run(
    model="tiny", text="a.txt", text_sha256="00", ctx=256, chunks=4, tokens_scored=508,
    rows=(BASE, OTHER),
)  # fmt: skip


def test_the_table_shows_each_figure():
    console = Console(width=120, file=io.StringIO())
    with console.capture() as shown:
        console.print(report.table(RUN))
    got = [" ".join(line.split()) for line in shown.get().splitlines()[-2:]]
    assert got[0] == "f16 4.0000 ±0.1000 +0.00 ±0.00 0 100.0 16 1048576 12346"
    assert got[1] == (
        "delta:interval=16/q4_0:rotate 4.2000 ±0.1000 +5.00 ±0.21 0.03456 92.3 5.047 330000 11111"
    )


def test_the_usual_table_fits_a_terminal_of_80_columns():
    rows = [dataclasses.replace(row, kv="q4_0:rotate", ppl=12.3456) for row in RUN.rows]
    console = Console(width=80, file=io.StringIO())
    with console.capture() as shown:
        console.print(report.table(dataclasses.replace(RUN, rows=tuple(rows))))
    lines = shown.get().splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("q4_0:rotate ")


def test_the_json_has_the_promised_keys():
    got = json.loads(report.to_json([RUN]))
    assert set(got) == {"runs", "device", "jax", "python", "version"}
    assert got["version"] == deltakv_jax.__version__
    (run,) = got["runs"]
    assert set(run) == {"model", "text", "text_sha256", "ctx", "chunks", "tokens_scored", "rows"}
    assert run["rows"][0] == {
        "kv": "f16", "ppl": 4.0, "ppl_stderr": 0.1, "delta_ln_ppl": 0.0,
        "delta_ln_ppl_stderr": 0.0, "kld_mean": 0.0, "kld_p999": 0.0, "same_top": 1.0,
        "bits_per_value": 16.0, "kv_bytes": 1_048_576, "tokens_per_second": 12345.6,
    }  # fmt: skip


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "out.json"
    target.write_text("old")
    report.write_atomically(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "out.json"
    target.write_text("old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(UserError, match="No space left"):
        report.write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("bad", ["", "missing/out.json"])
def test_a_place_that_cannot_be_written_is_found_before_the_run(tmp_path, bad):
    with pytest.raises(UserError, match="--json"):
        report.check_writable(tmp_path / bad)
