"""The command from arguments to table and JSON, and each of its errors in one line."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltakv_jax.cli import perplexity
from deltakv_jax.errors import UserError

ROOT = Path(__file__).parents[2]
KV = "f16", "delta"  # always: what they compile is shared


@pytest.fixture
def tiny(shared) -> list[str]:
    """Arguments of a run that takes a second."""
    text = str(shared / "texts" / "tinystories.txt")
    return ["--model", str(shared / "models" / "tiny1m"), "--text", text, "--ctx", "64"]


def test_the_table_and_the_json_hold_the_run(tiny, tmp_path, capsys):
    target = tmp_path / "out.json"
    words = ["--chunks", "3", "--kv", *KV, "--json", str(target)]
    assert perplexity.main([*tiny, *words]) == 0
    out = capsys.readouterr().out
    assert "tiny1m on tinystories.txt: 3 of 1573 chunks of 64 tokens (llama.cpp), 93 pred" in out
    (run,) = json.loads(target.read_text())["runs"]
    assert (run["model"], run["text"], run["chunks"]) == ("tiny1m", "tinystories.txt", 3)
    assert run["tokens_scored"] == 3 * 31
    assert [row["kv"] for row in run["rows"]] == [*KV]
    for row in run["rows"]:
        assert f"{row['ppl']:.4f} ±{row['ppl_stderr']:.4f}" in out
    base, row = run["rows"]
    assert row["delta_ln_ppl"] == pytest.approx(math.log(row["ppl"] / base["ppl"]))
    assert (base["kld_mean"], base["same_top"], base["bits_per_value"]) == (0, 1, 16)


def test_json_on_stdout_is_alone_there(tiny, capsys):
    assert perplexity.main([*tiny, "--chunks", "1", "--kv", "f16", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["runs"][0]["chunks"] == 1
    assert "perplexity" in err


def test_a_default_format_that_does_not_fit_is_left_out_with_a_line(tiny, shared, capsys):
    words = ["--model", str(shared / "models" / "stories260K"), "--chunks", "1"]
    assert perplexity.main([*tiny, *words], "tool") == 0
    out, err = capsys.readouterr()
    assert [line.split(":")[1] for line in err.splitlines()] == [
        f" left out {name}" for name in ("q8_0", "q4_0", "q4_0", "delta", "layered")
    ]
    assert "f16" in out
    assert "q4_0" not in out


def test_beyond_the_context_with_leave_and_a_warning(tiny, capsys):
    words = ["--ctx", "300", "--chunks", "1", "--kv", "f16", "--beyond-context"]
    assert perplexity.main([*tiny, *words]) == 0
    assert "warning: --ctx 300 is beyond the model's context of 256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kv", "q5_9"], "unknown KV format 'q5_9'"),
        (["--kv", "f16", "delta:interval=1"], "2 or more, got '1'"),
        (["--ctx", "257"], "beyond the model's context of 256 tokens; --beyond-context"),
        (["--text", "absent.txt"], "--text absent.txt: No such file"),
        (["--text", "short.txt"], "fewer than one chunk of --ctx 64"),
        (["--model", "absent"], "there is no 'absent'; give demo"),
        (["--json", "absent/out.json"], "--json absent/out.json: cannot write"),
        (["--json", "."], "--json . is a folder"),
        (["--resume"], "--resume needs --json FILE"),
        (["--resume", "--json", "-"], "--resume needs --json FILE"),
        (["--protocol", "gptq", "--ctx", "300"], "--ctx 300 is beyond the model's context of 256"),
        (["--by-layer", "--reads", "raw"], "leave out --reads raw"),
        (["--plot", "a.txt"], "--plot a.txt"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Once upon a time")
    assert perplexity.main([*tiny, *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ctx", "7"], "--ctx: expected a whole number of at least 8"),
        (["--chunks", "0"], "--chunks: expected a whole number of at least 1"),
        (["--batch", "x"], "--batch: expected a whole number of at least 1"),
        (["--kv"], "--kv: expected at least one argument"),
        (["--chunk", "3"], "did you mean --chunks?"),
        (["--protocol", "gpt"], "--protocol: invalid choice: 'gpt'"),
        (["--reads", "all"], "--reads: invalid choice: 'all'"),
    ],
)
def test_a_bad_argument_is_one_line(capsys, words, says):
    with pytest.raises(SystemExit) as stopped:
        perplexity.main(words)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert says in err


def test_a_format_asked_for_by_name_must_fit(tiny, shared, capsys):
    words = ["--model", str(shared / "models" / "stories260K"), "--kv", "f16", "q4_0"]
    assert perplexity.main([*tiny, *words]) == 2
    assert "q4_0 needs a head_dim that is a multiple of 32" in capsys.readouterr().err


def test_a_run_that_stops_keeps_the_old_json(tiny, tmp_path, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise UserError("logits are not finite in chunk 0")

    target = tmp_path / "out.json"
    target.write_text("old")
    monkeypatch.setattr(perplexity.runner, "evaluate", stop)
    assert perplexity.main([*tiny, "--kv", "f16", "--json", str(target)]) == 2
    assert "chunk 0" in capsys.readouterr().err
    assert target.read_text() == "old"


def test_several_texts_are_several_runs_and_pictures(tiny, shared, tmp_path, capsys):
    texts = [str(shared / "texts" / "tinystories.txt"), "python-docs"]
    target, picture = tmp_path / "out.json", tmp_path / "out.png"
    words = ["--chunks", "2", "--kv", *KV, "--by-layer", "--text", *texts]
    assert perplexity.main([*tiny, *words, "--json", str(target), "--plot", str(picture)]) == 0
    runs = json.loads(target.read_text())["runs"]
    assert [run["text"] for run in runs] == ["tinystories.txt", "python-docs"]
    for run in runs:
        base, row = run["rows"]
        assert len(row["by_layer"]["output"]) == 4
        assert row["by_group_position"]["at"] == list(range(31))  # of the second half
        assert max(base["by_layer"]["k"]) < 0.001 < min(row["by_layer"]["k"])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["out-python-docs.png", "out-tinystories.png", "out.json"]
    assert "attention output in each layer" in capsys.readouterr().out


def test_gptq_scores_whole_windows(tiny, capsys):
    assert perplexity.main([*tiny, "--protocol", "gptq", "--chunks", "2", "--kv", "f16"]) == 0
    assert "chunks of 64 tokens (gptq), 126 predictions" in capsys.readouterr().out


def test_raw_reads_are_labelled_and_see_nothing(tiny, tmp_path, capsys):
    target = tmp_path / "out.json"
    words = ["--chunks", "2", "--kv", *KV, "--reads", "raw", "--json", str(target)]
    assert perplexity.main([*tiny, *words]) == 0
    assert "NOT cache-true" in capsys.readouterr().out
    (run,) = json.loads(target.read_text())["runs"]
    assert run["reads"] == "raw"
    assert (run["rows"][1]["kld_mean"], run["rows"][1]["kld_max"]) == (0, 0)
    assert run["rows"][1]["ppl"] == run["rows"][0]["ppl"]


def without_times(path: Path) -> bytes:
    return re.sub(rb'"tokens_per_second": [0-9.]+', b"", path.read_bytes())


@pytest.fixture
def killed(tiny, tmp_path):
    """Arguments of a run of 60 chunks that was killed after its first batches, and its JSON."""
    target = tmp_path / "out.json"
    words = [*tiny, "--chunks", "60", "--kv", *KV, "--batch", "2"]
    words += ["--json", str(target)]
    script = [sys.executable, str(ROOT / "scripts" / "perplexity.py"), *words]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'pallas'}"}
    process = subprocess.Popen(script, stdout=subprocess.DEVNULL, env=environment)
    try:
        while process.poll() is None and len(list(tmp_path.rglob("*.npz"))) < 2:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    assert not target.exists()
    return words, target


def test_a_killed_run_goes_on_to_the_same_figures(killed, tmp_path, capsys):
    words, target = killed
    assert perplexity.main(words) == 2
    assert "holds an interrupted run: --resume goes on" in capsys.readouterr().err
    assert perplexity.main([*words, "--resume", "--kv", "f16", "q4_0", "--ctx", "48"]) == 2
    assert "--ctx was 64, is 48; --kv was f16 delta, is f16 q4_0" in capsys.readouterr().err
    assert perplexity.main([*words, "--resume"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    resumed = without_times(target)
    target.unlink()
    assert perplexity.main(words) == 0
    assert without_times(target) == resumed
