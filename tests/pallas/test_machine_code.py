"""The kernels compiled for GPUs that are not at hand: what they take of them."""

import json

import pytest

from deltakv_jax.cli.compile_gpu import main
from deltakv_pallas.machine_code import _loop


def compiled(tmp_path, target: str, kernel: str, spec: str) -> dict:
    """The rows of the command's JSON, by shape."""
    file = tmp_path / "kernels.json"
    arguments = ["--target", target, "--kernel", kernel, "--format", spec, "--json", str(file)]
    assert main(arguments) == 0
    return {row["shape"]: row for row in json.loads(file.read_text())["kernels"]}


@pytest.mark.parametrize(
    ("kernel", "spec"), [("decode", "delta"), ("decode", "q4_0"), ("matvec", "q6_k")]
)
def test_two_waves_of_an_mi50_fit_and_nothing_spills(tmp_path, capsys, kernel, spec):
    rows = compiled(tmp_path, "gfx906", kernel, spec)
    assert f"{len(rows)} kernels for gfx906" in capsys.readouterr().out
    for row in rows.values():
        assert row["spills"] == 0
        assert row["vgprs"] <= 128
        assert row["occupancy"] >= 2
        assert row["lds"] <= 32 * 1024
        assert row["loop"]["vector"] > 100  # it was the loop over tiles that was counted


@pytest.mark.parametrize(("kernel", "spec"), [("decode", "delta"), ("matvec", "q4_0")])
def test_nvidia_says_registers_and_spills(tmp_path, kernel, spec):
    for row in compiled(tmp_path, "sm_90", kernel, spec).values():
        assert row["spills"] == 0
        assert 32 < row["vgprs"] <= 255


def test_the_longest_loop_is_counted():
    lines = """
    v_mov_b32 v0, 0
.LBB0_1:
    v_add_f32 v0, v0, v1
    s_cbranch_scc1 .LBB0_1
.LBB0_2: ; a comment
    v_dot2_f32_f16 v0, v1, v2, v0
    ds_read_b128 v[0:3], v4
    ; v_add in a comment
    global_load_dword v1, v[2:3], off
    s_cbranch_vccnz .LBB0_2
    s_endpgm""".splitlines()
    assert _loop(lines) == {"vector": 1, "lds": 1, "memory": 1}


def test_a_format_that_no_kernel_reads_is_one_line(capsys):
    assert main(["--kernel", "decode", "--format", "q3_0"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no kernel reads 'q3_0'; known: f32, bf16" in error
