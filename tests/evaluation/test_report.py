"""The table and the JSON of a run."""

import dataclasses
import io
import json

from rich.console import Console

import deltakv_jax
from deltakv_jax.evaluation import report
from deltakv_jax.evaluation.profiles import Profile
from deltakv_jax.evaluation.results import LayerErrors, Row, Run

PROFILE = Profile(
    at=(2.0, 3.0), kld=(0.0, 0.1), kld_stderr=(0.0, 0.01), delta_ln_ppl=(0.0, 0.2),
    delta_ln_ppl_stderr=(0.0, 0.02),
)  # fmt: skip
BASE = Row(
    kv="f16",
    ppl=4.0,
    ppl_stderr=0.1,
    delta_ln_ppl=0.0,
    delta_ln_ppl_stderr=0.0,
    delta_ln_ppl_low=0.0,
    delta_ln_ppl_high=0.0,
    kld_mean=0.0,
    kld_stderr=0.0,
    kld_median=0.0,
    kld_p99=0.0,
    kld_p999=0.0,
    kld_max=0.0,
    same_top=1.0,
    probability_rms=0.0,
    bits_per_value=16.0,
    kv_bytes=1_048_576,
    by_position=PROFILE,
    by_group_position=None,
    by_layer=None,
    tokens_per_second=12345.6,
)
OTHER = Row(
    kv="delta:interval=16/q4_0:rotate",
    ppl=4.2,
    ppl_stderr=0.1,
    delta_ln_ppl=0.0487901641694,
    delta_ln_ppl_stderr=0.002,
    delta_ln_ppl_low=0.04,
    delta_ln_ppl_high=0.06,
    kld_mean=0.03456,
    kld_stderr=0.001,
    kld_median=0.01,
    kld_p99=0.3,
    kld_p999=0.7,
    kld_max=2.5,
    same_top=0.92345,
    probability_rms=0.0123,
    bits_per_value=5.046875,
    kv_bytes=330_000,
    by_position=PROFILE,
    by_group_position=PROFILE,
    by_layer=LayerErrors(k=(0.05, 0.06), v=(0.07, 0.08), output=(0.09, 0.1)),
    tokens_per_second=11111.1,
)
RUN = Run(
    model="tiny", text="a.txt", text_sha256="00", protocol="gptq", reads="cache", sequential=False,
    ctx=256, chunks=4, tokens_scored=508,
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
    named = lambda record: {field.name for field in dataclasses.fields(record)}
    assert set(run) == named(Run)
    assert [set(row) for row in run["rows"]] == [named(Row)] * 2
    assert run["rows"][0]["kv_bytes"] == 1_048_576
    assert run["rows"][0]["by_layer"] is None
    assert run["rows"][1]["by_layer"] == {
        "k": [0.05, 0.06],
        "v": [0.07, 0.08],
        "output": [0.09, 0.1],
    }
    assert run["rows"][1]["by_position"]["at"] == [2, 3]


def lines(table) -> list[str]:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as shown:
        console.print(table)
    return [" ".join(line.split()) for line in shown.get().splitlines()]


def test_the_second_table_shows_the_interval_and_the_tail():
    got = lines(report.details(RUN))[-2:]
    assert got[0] == "f16 +0.00 … +0.00 0 0 0 0 0.00"
    assert got[1] == (
        "delta:interval=16/q4_0:rotate +4.08 … +6.18 0.01000 0.30000 0.70000 2.50000 1.23"
    )


def test_a_single_chunk_has_no_interval():
    row = dataclasses.replace(OTHER, delta_ln_ppl_low=None, delta_ln_ppl_high=None)
    got = lines(report.details(dataclasses.replace(RUN, rows=(BASE, row))))[-1]
    assert got.startswith("delta:interval=16/q4_0:rotate none 0.01")


def test_errors_by_layer_stand_in_percent():
    got = lines(report.layers(RUN))
    assert got[-2:] == ["0 5.00 / 7.00 / 9.00", "1 6.00 / 8.00 / 10.00"]
