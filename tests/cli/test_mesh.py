"""`--mesh` and `--distributed`: what they refuse, and that jobs come out as on one device."""

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deltakv_jax.cli import decode, perplexity
from deltakv_jax.cli.mesh import mesh_shape
from tests.cli.test_decode import CONFIG, make_folder

ROOT = Path(__file__).parents[2]
WIDE = dataclasses.replace(CONFIG, kv_heads=4)  # as many kv heads as devices
JOB = ("--prompt", "abc", "--prompt", "xy", "--max-new-tokens", "12", "--kv", "f32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_folder(tmp_path_factory.mktemp("models") / "bytes", WIDE)


@pytest.fixture(scope="module")
def on_one_device(folder, tmp_path_factory) -> dict:
    return figures(decode.main, tmp_path_factory.mktemp("json") / "run", "--model", folder, *JOB)


def figures(main, target: Path, *words: str) -> dict:
    assert main([*words, "--json", str(target)]) == 0
    return json.loads(target.read_text())


def tokens(run: dict) -> list[list[int]]:
    return [sequence["tokens"] for sequence in run["sequences"]]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("tensor=4", {"tensor": 4}),
        ("data=2", {"data": 2}),
        ("tensor=4,data=2", {"tensor": 4, "data": 2}),
    ],
)
def test_a_mesh_is_a_size_for_each_axis(text, shape):
    assert mesh_shape(text) == shape


@pytest.mark.parametrize("text", ["", "4", "tensor", "tensor=0", "tensor=4,tensor=2", "model=2"])
def test_anything_else_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected tensor=N, data=N or both, got"):
        mesh_shape(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mesh tensor=8", "a mesh of tensor=8 takes 8 devices, there are 4; XLA_FLAGS=--xla_"),
        ("--mesh tensor=3", "tensor=3 does not divide the 4 kv heads; tensor=1, 2 or 4 would"),
        ("--mesh data=2", "data=2 does not divide a batch of 1; data=1 would"),
        ("--mesh heads=2", "--mesh: expected tensor=N, data=N or both, got 'heads=2'"),
        ("--coordinator a:1", "--coordinator without --distributed would change nothing"),
        ("--distributed", "--distributed needs --mesh, over the devices of all processes"),
        (
            "--mesh tensor=4 --distributed --process-id 0",
            "--process-id without --coordinator; give",
        ),
        (
            "--mesh tensor=4 --distributed --process-id 2 --process-count 2 --coordinator a:1",
            "--process-id 2: with --process-count 2 the last one is 1",
        ),
        (
            "--mesh tensor=4 --distributed --process-id 0 --process-count 2 --coordinator a",
            "--coordinator: expected HOST:PORT, got 'a'",
        ),
    ],
)
def test_wrong_input_is_one_line(folder, capsys, words, message):
    try:
        status = decode.main(["--model", folder, "--prompt", "a", *words.split()], prog="decode")
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_several_processes_keep_no_checkpoints(folder, capsys):
    words = ["--model", folder, "--mesh", "tensor=4", "--distributed", "--resume"]
    assert perplexity.main([*words, "--json", "x.json"], prog="perplexity") == 2
    assert "--resume with --distributed: several processes keep" in capsys.readouterr().err


def test_decoding_over_a_mesh_gives_the_tokens_of_one_device(folder, tmp_path, on_one_device):
    words = ("--model", folder, *JOB, "--mesh", "tensor=2,data=2")
    run = figures(decode.main, tmp_path / "run", *words)
    assert tokens(run) == tokens(on_one_device)
    assert run["mesh"] == "data=2,tensor=2"
    assert run["kv_bytes"] == on_one_device["kv_bytes"]


@pytest.mark.slow
def test_a_cache_saved_over_one_mesh_goes_on_over_another(folder, tmp_path, on_one_device):
    saved, target = str(tmp_path / "saved"), tmp_path / "run"
    job = ("--model", folder, *JOB, "--mesh", "tensor=2,data=2", "--save-cache", saved)
    figures(decode.main, target, *job)
    more = ("--model", folder, "--load-cache", saved, "--max-new-tokens", "12")
    for mesh in ((), ("--mesh", "tensor=4")):
        assert tokens(figures(decode.main, target, *more, *mesh)) == tokens(on_one_device)


@pytest.mark.slow
def test_perplexity_over_a_mesh_is_that_of_one_device(folder, tmp_path, capsys):
    (tmp_path / "text").write_text("abcdefgh" * 20)
    words = ("--model", folder, "--text", str(tmp_path / "text"), "--ctx", "16", "--kv", "f32")
    ppl = lambda run: run["runs"][0]["rows"][0]["ppl"]
    one = figures(perplexity.main, tmp_path / "run", *words)
    mesh = figures(perplexity.main, tmp_path / "run", *words, "--mesh", "tensor=2,data=2")
    assert ppl(mesh) == pytest.approx(ppl(one), rel=1e-5)
    assert mesh["mesh"] == "data=2,tensor=2"
    assert "bytes, data=2,tensor=2, on text: 10 of 10 chunks" in capsys.readouterr().out


def start(port: int, number: int, *words: str) -> subprocess.Popen:
    """One process of two, which sees no devices but those that it makes itself."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": ""}
    among = ("--coordinator", f"127.0.0.1:{port}", "--process-id", str(number))
    command = [sys.executable, ROOT / "scripts" / "decode.py", *words, "--distributed", *among]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, "--process-count", "2"], env=environment, stdout=pipe, stderr=pipe, text=True
    )


def test_two_processes_of_two_devices_give_the_same_tokens(folder, tmp_path, on_one_device):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = str(tmp_path / "run.json")
    words = ("--model", folder, *JOB, "--mesh", "tensor=4", "--json", target)
    processes = [start(port, number, *words) for number in range(2)]
    (out, err), (silence, noise) = (process.communicate(timeout=120) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], err + noise
    run = json.loads(Path(target).read_text())
    assert tokens(run) == tokens(on_one_device)
    assert out == "".join(f"{sequence['text']}\n" for sequence in run["sequences"])
    assert silence == ""
    assert "prompt 1: 'abc'" in err
    assert "prompt 1" not in noise
