"""The table, the JSON and the picture of a measurement."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deltakv_jax.evaluation import coherence_plot, coherence_report, reading
from deltakv_jax.evaluation.capture import ARRAYS
from deltakv_jax.evaluation.coherence import Coherence, Row

ROW = Row(
    layer=0,
    array=ARRAYS[0],
    relative_delta=1.25,
    correlation=-0.125,
    mean_energy=0.375,
    range_ratio=1.5,
    q4_0_mse=0.008,
    delta_mse=0.012,
    centred_q4_0_mse=0.004,
)
BLOCKLESS = dataclasses.replace(
    ROW, range_ratio=None, q4_0_mse=None, delta_mse=None, centred_q4_0_mse=None
)


def measured(row: Row, head_dim: int) -> Coherence:
    rows = tuple(
        dataclasses.replace(row, layer=layer, array=array)
        for layer in (0, 1, None)
        for array in ARRAYS
    )
    return Coherence(
        model="tiny", text="a.txt", text_sha256="00", ctx=64, chunks=4, head_dim=head_dim,
        interval=16, rows=rows,
    )  # fmt: skip


WHOLE, PARTIAL = measured(ROW, 64), measured(BLOCKLESS, 8)


def lines_of(found: Coherence, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as shown:
        console.print(coherence_report.table(found))
    return shown.get().splitlines()


def test_the_table_has_three_rows_a_layer_and_three_for_all():
    rows = [" ".join(line.split()) for line in lines_of(WHOLE, 100) if line.strip()][2:]
    assert len(rows) == 9
    assert rows[0] == "0 K before RoPE 1.250 -0.125 37.5 1.500 0.00800 0.01200 0.00400 1.500"
    assert [row.split(" 1.250")[0] for row in rows[4:7]] == [
        "1 K after RoPE", "1 V", "all K before RoPE",
    ]  # fmt: skip


def test_what_a_head_dim_without_blocks_cannot_have_is_a_dash_and_said():
    assert lines_of(PARTIAL, 100)[2].split()[-5:] == ["-"] * 5
    assert "head_dim 8 has no blocks of 32" in coherence_report.legend(PARTIAL)
    assert "no blocks" not in coherence_report.legend(WHOLE)


@pytest.mark.parametrize("found", [WHOLE, PARTIAL])
def test_the_json_holds_every_figure(found):
    got = json.loads(coherence_report.to_json(found))
    assert set(got) == {"runs", "device", "jax", "python", "version"}
    assert reading.records(Coherence, got, "runs", Path("out.json")) == (found,)


@pytest.mark.parametrize(("found", "panels"), [(WHOLE, 6), (PARTIAL, 3)])
def test_the_picture_has_a_named_panel_for_each_figure_that_there_is(found, panels):
    axes = coherence_plot.figure(found).axes
    assert len(axes) == panels
    assert {one.get_xlabel() for one in axes} == {"layer"}
    assert len({one.get_ylabel() for one in axes}) == panels
    drawn = [np.asarray(line.get_ydata()) for line in axes[1].lines[1:]]  # without the mark
    np.testing.assert_array_equal(drawn, [[ROW.correlation] * 2] * 3)


def test_the_lines_can_be_told_apart_without_colour():
    drawn = coherence_plot.figure(WHOLE).axes[2].lines
    assert len({str(line.get_marker()) for line in drawn}) == 3
    assert len({line.get_linestyle() for line in drawn}) == 3
    assert [line.get_label() for line in drawn] == ["K before RoPE", "K after RoPE", "V"]
