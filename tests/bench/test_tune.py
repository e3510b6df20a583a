"""Rows for the kernels' tables: which is taken, and what it says."""

import dataclasses

import pytest

from deltakv_pallas.lowering import TARGETS
from deltakv_pallas.machine_code import Resources
from deltakv_pallas.matvec_tuning import Tuning, matvec_tuning
from scripts.bench import timing, tune
from scripts.bench.tunable import TUNABLE

SHAPE = ("q4_0", 64, 256, 1)
GENERAL = matvec_tuning("NVIDIA A100", "", 0, 0)


def kernel(**fields):
    """The matvec kernel with less to try."""
    rows = lambda general: [dataclasses.replace(general, warps=warps) for warps in (1, 2, 8)]
    return dataclasses.replace(TUNABLE["matvec"], rows=rows, **fields)


def test_the_fastest_row_is_found_under_its_shape(monkeypatch):
    monkeypatch.setattr(
        timing, "interleaved", lambda timers, _: {k: t() for k, t in timers.items()}
    )
    seconds = {1: 3.0, 2: 1.0, 8: 2.0}
    fake = kernel(timers=lambda shape: lambda row: lambda: seconds[row.warps])
    row = tune.timed(fake, SHAPE, "NVIDIA A100")
    assert (row.warps, row.timed, row.device) == (2, True, "NVIDIA A100")
    assert (row.format, row.rows, row.values) == SHAPE[:3]
    text = tune.as_written(row, GENERAL)
    assert text.startswith("replace(GENERAL, device='NVIDIA A100', format='q4_0', rows=64")
    assert "bytes" not in text


@pytest.mark.parametrize(("vgprs", "gains"), [(100, False), (140, True)])
def test_a_target_gets_a_row_only_where_the_general_one_takes_too_much(vgprs, gains, monkeypatch):
    found = Resources(
        vgprs=vgprs, sgprs=0, spills=0, lds=0, occupancy=1, code=0, loop={"vector": 9}
    )
    few = dataclasses.replace(found, vgprs=64)
    made = {4: found, 1: few, 2: few, 8: few}
    case = lambda *shape, tuning: dataclasses.make_dataclass("Case", ["lower"])(lambda _: tuning)
    monkeypatch.setattr(tune, "compile_kernel", lambda tuning, _: made[tuning.warps])
    row = tune.compiled(kernel(case=case), SHAPE, TARGETS["gfx906"])
    assert (row is not None) == gains
    if row is not None:
        assert (row.device, row.timed) == ("gfx906", False)
        assert isinstance(row, Tuning)


@pytest.mark.parametrize("name", TUNABLE)
def test_every_shape_of_a_kernel_has_keys_of_its_table(name):
    tunable = TUNABLE[name]
    fields = {field.name for field in dataclasses.fields(tunable.general("gfx906"))}
    for shape in tunable.shapes():
        assert set(tunable.keys(shape)) < fields
