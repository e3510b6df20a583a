"""The command from arguments to table and JSON, and each of its errors in one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from deltakv_jax.cli import plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _devices():
    """Those of all tests: a command within this process must not choose its own."""
    jax.devices()


def test_the_table_and_the_json_hold_the_plan(tmp_path, capsys):
    target = tmp_path / "out.json"
    words = ["--kv", "f16", "--memory", "1.5GiB", "--json", str(target)]
    assert plan.main(words) == 0
    out = capsys.readouterr().out
    document = json.loads(target.read_text())
    (got,) = document["plans"]
    assert (document["model"], document["mesh"], document["ctx"]) == ("demo", None, 2048)
    assert (document["memory"], document["weights"]) == (3 * 2**29, ["f32"])
    assert (got["collectives"], got["lowered"], got["tokens_per_second"]) == ([], None, None)
    assert got["total_bytes"] == got["weight_bytes"] + got["cache_bytes"] + got["scratch"]
    assert f"{got['largest_context']:,}" in out
    assert re.search(rf"total +{got['total_bytes'] / 1e6:.3f} MB", out)
    assert re.search(r"fits in 1.61061 GB +yes", out)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "llama4"], "no model 'llama4' here; known are llama3.1-8b, llama3.1-70b, "),
        (["--kv", "q5_9"], "unknown KV format 'q5_9'"),
        (["--ctx", "131073"], "--ctx 131073 is beyond the model's context of 131072 tokens"),
        (["--mesh", "tensor=3"], "tensor=3 does not divide the 8 kv heads"),
        (["--mesh", "data=2"], "data=2 does not divide a batch of 1"),
        (["--mesh", "tensor=8"], "a mesh of tensor=8 takes 8 devices, there are 4"),
        (["--json", "absent/out.json"], "--json absent/out.json: cannot write"),
    ],
)
def test_bad_input_is_one_line(capsys, words, says):
    assert plan.main(["--model", "llama3.1-8b", "--weights", "q4_0", *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--memory", "32"], "--memory: expected a size such as 32GB or 30.5GiB, got '32'"),
        (["--memory", "0GB"], "--memory: expected a size such as 32GB"),
        (["--mesh", "tensor"], "--mesh: expected tensor=N, data=N or both, got 'tensor'"),
        (["--mesh", "tensor=2,tensor=2"], "--mesh: expected tensor=N, data=N or both"),
        (["--mesh", "model=2"], "--mesh: expected tensor=N, data=N or both"),
        (["--device", "gfx803"], "--device: invalid choice: 'gfx803'"),
        (["--batch", "0"], "--batch: expected a whole number of at least 1"),
        (["--weights", "q3"], "--weights: invalid choice: 'q3'"),
    ],
)
def test_a_bad_argument_is_one_line(capsys, words, says):
    with pytest.raises(SystemExit) as stopped:
        plan.main(words)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert says in err


def test_sizes():
    assert (plan.size("32GB"), plan.size("32 GiB")) == (32 * 10**9, 2**35)
    assert (plan.size("500MB"), plan.size("0.5GiB")) == (500 * 10**6, 2**29)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB there")
def test_llama_70b_on_four_devices_in_a_minute_and_2_gb(tmp_path):
    target = tmp_path / "out.json"
    words = ["--model", "llama3.1-70b", "--weights", "q4_0", "--mesh", "tensor=4"]
    words += ["--device", "gfx906", "--ctx", "8192", "--memory", "16GB", "--json", str(target)]
    script = [sys.executable, str(ROOT / "scripts" / "plan.py"), *words]
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'pallas'}"}  # no cache of compiled programs
    with subprocess.Popen(script, env=env, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = status
    assert status == 0
    seconds = used.ru_utime + used.ru_stime  # of one core, however busy the machine is
    peak = 1024 * used.ru_maxrss
    print(f"{seconds:.0f} s, {peak / 1e9:.2f} GB")
    plans = {one["kv"]: one for one in json.loads(target.read_text())["plans"]}
    for one in plans.values():
        assert one["argument_bytes"] == pytest.approx(one["by_hand"]["bytes"], rel=0.01)
        assert one["lowered"]["all-reduce"] == 3
        assert one["collectives"][1:3] == 2 * [{"kind": "all-reduce", "bytes": 32768, "times": 80}]
    assert plans["delta"]["total_bytes"] < 16e9
    assert seconds < 60
    assert peak < 2e9
