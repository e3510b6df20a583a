"""The conversion command: what it writes runs in the others, and a killed one is never a model."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deltakv_jax.cli import convert, decode, perplexity
from deltakv_jax.cli.main import main
from deltakv_jax.errors import UserError
from deltakv_jax.weights import load_model
from tests.cli.test_decode import CONFIG, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return make_folder(tmp_path_factory.mktemp("models") / "bytes", CONFIG)


@pytest.fixture
def refuse(capsys):
    """Runs the command and returns the one line of its error."""

    def refuse(*words: object) -> str:
        try:
            status = main(["convert", *map(str, words)])
        except SystemExit as exit:
            status = exit.code
        out, err = capsys.readouterr()
        assert status == 2
        assert out == ""
        assert err.startswith("deltakv convert: ")
        assert err.count("\n") == 1
        return err.strip()

    return refuse


@pytest.mark.slow
def test_the_other_commands_run_what_it_wrote(folder, tmp_path, capsys):
    dest = str(tmp_path / "dest")
    assert main(["convert", folder, dest, "--weights", "f16"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{dest}: bytes as f16\n"
    assert re.fullmatch(rf"deltakv convert: writing 0\.1 MB of weights to {dest}\n", err)
    (tmp_path / "text").write_text("Ein Satz, der nicht lang ist.\n" * 4)
    text = ["--text", str(tmp_path / "text"), "--ctx", "16", "--kv", "f16", "--chunks", "2"]

    def results(command, *words: str) -> list:
        """What the command finds with the source and with what was written."""
        found = []
        for model in ([folder, "--weights", "f16"], [dest]):
            assert command.main(["--model", *model, *words, "--json", "-"]) == 0
            found.append(json.loads(capsys.readouterr().out))
        return found

    source, converted = results(decode, "--prompt", "abc", "--max-new-tokens", "12")
    assert converted["sequences"] == source["sequences"]
    assert converted["model"] == source["model"] == "bytes"
    [source], [converted] = (one["runs"] for one in results(perplexity, *text))
    assert [row["ppl"] for row in converted["rows"]] == [row["ppl"] for row in source["rows"]]


def test_every_tensor_is_counted(folder, tmp_path, monkeypatch):
    counted = []

    class Shown:
        def __init__(self, total: int, unit: str):
            counted.append((total, unit))

        def __enter__(self):
            return counted.append

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(convert.progress, "shown", Shown)
    assert convert.main([folder, str(tmp_path / "dest")]) == 0
    assert counted == [(3 + 9 * CONFIG.layers, "tensors"), *[1] * (3 + 9 * CONFIG.layers)]


def test_a_converted_model_of_another_type_is_refused(folder, tmp_path, refuse, capsys):
    dest = tmp_path / "dest"
    assert convert.main([folder, str(dest), "--weights", "f32"]) == 0
    capsys.readouterr()
    words = ["--model", str(dest), "--weights", "bf16"]
    assert decode.main([*words, "--prompt", "a"]) == 2
    assert "dest holds f32; convert the model anew for bf16\n" in capsys.readouterr().err
    assert "holds f32" in refuse(dest, tmp_path / "other", "--weights", "bf16")
    assert not (tmp_path / "other").exists()


def test_wrong_arguments_are_one_line(folder, tmp_path, refuse):
    dest = tmp_path / "dest"
    assert "SOURCE: there is no 'nowhere'; give demo, a Hugging" in refuse("nowhere", dest)
    assert "the following arguments are required: DEST" in refuse(folder)
    assert "invalid choice: 'q2_0'" in refuse(folder, dest, "--weights", "q2_0")
    assert "has rows of 48 values" in refuse(folder, dest, "--weights", "q8_0")
    assert "exists and is not a saved model; name a new folder" in refuse(folder, folder)
    assert "unknown argument '--dtype'" in refuse(folder, dest, "--dtype", "f32")
    assert not dest.exists()
    (tmp_path / "file").write_text("mine")
    assert f"{tmp_path}/file is no folder to write to" in refuse(folder, tmp_path / "file/dest")


def test_a_damaged_tokenizer_shows_before_any_weights_are_read(folder, tmp_path, refuse):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).symlink_to(Path(folder) / name)
    assert "tokenizer.json: no such file" in refuse(copy, tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
import orbax.checkpoint as ocp
from deltakv_jax import checkpoint
from deltakv_jax.cli import convert

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(*eval(sys.argv[3]), die)
convert.main(sys.argv[1:3])
"""


@pytest.mark.parametrize("where", ["ocp.Checkpointer, 'close'", "Path, 'rename'"])
def test_a_killed_conversion_is_no_model(folder, tmp_path, where):
    dest = tmp_path / "dest"
    words = [sys.executable, "-c", KILLED, folder, dest, where]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(words, env=environment, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert any(dest.rglob("manifest.ocdbt"))  # it was killed after orbax had begun
    with pytest.raises(UserError, match=f"^no saved model in {dest}$"):
        load_model(dest)
    assert convert.main([folder, str(dest)]) == 0
    assert [path.name for path in dest.iterdir()] == ["0"]
    load_model(dest)


def test_a_conversion_that_is_killed_at_any_time_leaves_the_model_that_was_there(folder, tmp_path):
    """The moment is real, and so left to chance; the former model is whole at all of them."""
    dest = tmp_path / "dest"
    assert convert.main([folder, str(dest), "--weights", "f16"]) == 0
    words = [sys.executable, "-m", "deltakv_jax.cli.main", "convert", folder, dest]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, env=environment, stdout=-1, stderr=-1) as process:
        while process.poll() is None and not any(dest.glob(".partial-*/*")):
            pass
        process.kill()
    assert Path(dest, "0").exists() or Path(dest, "1").exists()
    load_model(dest)
