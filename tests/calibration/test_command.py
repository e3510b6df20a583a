"""`calibrate` and the commands that take its file, from arguments to figures, and their errors."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from deltakv_jax.cache.checkpoint import load_cache
from deltakv_jax.calibration import load_calibration
from deltakv_jax.cli import calibrate, decode, perplexity, sweep
from tests.cli.test_decode import CONFIG, make_folder

CONTEXT = 32
CENTRED = "layered:window=4:sinks=1:centre"
SHORT = ("--prompt", "abc", "--max-new-tokens", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two models whose tokens are bytes, and a text."""
    made = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("two", 1)):
        make_folder(made / name, dataclasses.replace(CONFIG, context=CONTEXT), seed)
    (made / "text").write_text("abcdefghijklmnopqrstuvwxyz, and again; " * 12)
    return made


@pytest.fixture(scope="module")
def made(folder) -> dict[str, str]:
    """Calibrations of the first model: with formats, without, and of the second one."""
    files = {name: str(folder / f"{name}.calibration") for name in ("allotted", "means", "other")}
    text = ("--text", str(folder / "text"), "--chunks", "3")
    one, two = (("--model", str(folder / name)) for name in ("one", "two"))
    allotted = ("--bits", "3.3", "--kv", CENTRED, "--out", files["allotted"])
    assert calibrate.main([*one, *text, *allotted]) == 0
    assert calibrate.main([*one, *text, "--out", files["means"]]) == 0
    assert calibrate.main([*two, *text, "--out", files["other"]]) == 0
    return files


@pytest.fixture
def run(folder, tmp_path):
    """Runs a command on the first model and returns its JSON."""

    def run(command, *words: str) -> dict:
        target = tmp_path / "run.json"
        assert command.main(["--model", str(folder / "one"), "--json", str(target), *words]) == 0
        return json.loads(target.read_text())

    return run


def test_the_table_and_the_file(folder, tmp_path, capsys):
    target = tmp_path / "out"
    words = ["--model", str(folder / "one"), "--text", str(folder / "text"), "--chunks", "3"]
    words += ["--bits", "3.3", "--kv", CENTRED, "--out", str(target)]
    assert calibrate.main(words) == 0
    out = capsys.readouterr().out
    assert "one on text: 3 of 14 chunks of 32 tokens" in out
    assert "cost K  cost V  mean K %  mean V %  bits K  bits V" in out
    found = load_calibration(target)
    assert (found.model, found.text, found.ctx, found.chunks) == ("one", "text", 32, 3)
    assert found.specs is not None
    assert {str(side)[:7] for spec in found.specs for side in (spec.k, spec.v)} == {"layered"}
    assert all(spec.k.centre and spec.k.window == 4 for spec in found.specs)
    assert f"{found.k_cost[0]:.4g}" in out
    assert "3.25 on average" in out
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--bits", "2"], "--bits 2 is less than the 2.25 of the least codes"),
        (["--bits", "3", "--kv", "q4_0"], "--kv q4_0: no side of it has codes of several widths"),
        (["--kv", "layered"], "--kv without --bits would change nothing"),
        (["--bits", "3", "--kv", "layered:window=1/layered"], "give both one window and sinks"),
        (["--bits", "3", "--kv", "nothing"], "unknown KV format 'nothing'"),
        (["--ctx", "64"], "beyond the model's context of 32 tokens; --beyond-context"),
        (["--out", "absent/file"], "--out absent/file: cannot write"),
        (["--text", "absent"], "--text absent: No such file"),
    ],
)
def test_bad_input_is_one_line(folder, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    plain = ["--model", str(folder / "one"), "--text", str(folder / "text"), "--out", "file"]
    assert calibrate.main([*plain, "--chunks", "1", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert not Path("file").exists()


def test_bits_are_a_number(capsys):
    for bits in ("x", "0", "nan"):
        with pytest.raises(SystemExit):
            calibrate.main(["--bits", bits, "--out", "file"])
        assert "--bits: expected a number of bits" in capsys.readouterr().err


REFUSED = [
    (["--kv", "layered:centre"], "takes the means of a calibration file; give --kv-calibration"),
    (["--kv", "calibrated"], "is what a calibration file has allotted; give --kv-calibration"),
    (["--kv", "calibrated", "--kv-calibration", "means"], "the calibration has allotted none"),
    (["--kv", "calibrated", "--kv-calibration", "absent"], "absent: No such file"),
    (["--kv-calibration", "means"], "--kv-calibration would change nothing; give --kv calibrated"),
    (["--kv", "f16", "--kv-calibration", "means"], "--kv-calibration would change nothing"),
    (["--kv", CENTRED, "--kv-calibration", "other"], "of another model, two: weights_checksum is"),
]


@pytest.mark.parametrize("command", [decode, perplexity, sweep])
@pytest.mark.parametrize(("words", "says"), REFUSED)
def test_a_calibration_that_does_not_fit_is_one_line(folder, made, capsys, command, words, says):
    words = [made.get(word, word) for word in words]
    prompt = SHORT if command is decode else ("--text", str(folder / "text"), "--ctx", "32")
    assert command.main(["--model", str(folder / "one"), *prompt, *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.replace("warning: the calibration was learned on", "").count(says) == 1
    assert len([line for line in err.splitlines() if "warning" not in line]) == 1


def test_no_model_is_loaded_for_what_lacks_a_calibration(capsys):
    words = ["--model", "absent", "--prompt", "a", "--kv", "layered:centre"]
    assert decode.main(words) == 2
    assert "takes the means of a calibration file" in capsys.readouterr().err


@pytest.mark.slow
def test_figures_with_means_and_with_allotted_formats(folder, made, run, capsys):
    words = ["--text", str(folder / "text"), "--ctx", "32", "--chunks", "1"]
    words += ["--kv", "f32", "calibrated", CENTRED, "--kv-calibration", made["allotted"]]
    document = run(perplexity, *words)
    out, err = capsys.readouterr()
    assert "\ncalibrated" in out
    assert "warning: the calibration was learned on text, which it is measured on" in err
    assert document["kv_calibration"] == load_calibration(made["allotted"]).sha256
    _, calibrated, centred = document["runs"][0]["rows"]
    assert (calibrated["kv"], centred["kv"]) == ("calibrated", CENTRED)
    assert calibrated["bits_per_value"] < centred["bits_per_value"]
    assert 0 < centred["kld_mean"] < calibrated["kld_mean"]


def tokens(document: dict) -> list[int]:
    (sequence,) = document["sequences"]
    return sequence["tokens"]


@pytest.mark.slow
def test_a_saved_cache_goes_on_with_its_own_means(folder, made, run, tmp_path, capsys):
    saved = str(tmp_path / "saved")
    take = ("--kv", "calibrated", "--kv-calibration", made["allotted"])
    whole = run(decode, *SHORT, *take, "--save-cache", saved)
    took = load_calibration(made["allotted"])
    assert (whole["kv"], whole["kv_calibration"]) == ("calibrated", took.sha256)
    assert len(tokens(whole)) == 12
    cache, _ = load_cache(tmp_path / "saved", model=took.fingerprint)
    for layer in range(CONFIG.layers):
        kind, row = cache.layout.find(layer)
        mean = cache.stacks[int(kind)].centre.k["mean"][row, 0, :, 0]
        np.testing.assert_array_equal(mean, took.k_mean[layer])
    load = ("--load-cache", saved, "--max-new-tokens", "12")
    again = run(decode, *load)
    assert tokens(again) == tokens(whole)
    assert again["kv_bytes"] == whole["kv_bytes"]
    assert "kv_calibration" not in again
    capsys.readouterr()
    for words, says in (
        (take, "--kv-calibration with --load-cache: a saved cache has its own means"),
        (("--kv", CENTRED), f"is {again['kv']}, not {CENTRED}"),
    ):
        assert decode.main(["--model", str(folder / "one"), *load, *words]) == 2
        assert says in capsys.readouterr().err
