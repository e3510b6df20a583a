"""The command from arguments to table, JSON and picture, and its errors in one line."""

import json
from pathlib import Path

import pytest

from deltakv_jax.cli import coherence

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(shared) -> list[str]:
    """Arguments of a run that takes seconds."""
    text = str(shared / "texts" / "tinystories.txt")
    return ["--model", str(shared / "models" / "tiny1m"), "--text", text, "--chunks", "4"]


def test_a_real_model_is_measured_shown_and_drawn(tiny, tmp_path, capsys):
    """The bounds are those of other measurements of this model."""
    figures, picture = tmp_path / "out.json", tmp_path / "out.png"
    assert coherence.main([*tiny, "--json", str(figures), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "tiny1m on tinystories.txt: 4 of 393 chunks of 256 tokens" in out
    assert "keyframe every 32 tokens" in " ".join(out.split())
    (run,) = json.loads(figures.read_text())["runs"]
    assert (run["ctx"], run["chunks"], run["interval"], len(run["rows"])) == (256, 4, 32, 15)
    for row in run["rows"]:
        assert f"{row['relative_delta']:.3f}" in out
        assert f"{row['delta_mse']:.5f}" in out
    before, after, v = (run["rows"][i:12:3] for i in range(3))
    assert all(0.55 < row["relative_delta"] < 1.15 for row in before + after)
    assert all(1.3 < row["relative_delta"] < 1.43 for row in v)
    assert all(0.33 < row["mean_energy"] < 0.82 for row in before)
    assert all(0.11 < row["mean_energy"] < 0.37 for row in after)
    assert all(row["delta_mse"] > row["q4_0_mse"] for row in v)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_json_on_stdout_is_alone_there(tiny, shared, capsys):
    """This model's context is longer than the default chunk, and its head_dim has no blocks."""
    words = ["--model", str(shared / "models" / "stories260K"), "--ctx", "64", "--json", "-"]
    assert coherence.main([*tiny, *words]) == 0
    out, err = capsys.readouterr()
    (run,) = json.loads(out)["runs"]
    assert (run["model"], run["ctx"], run["head_dim"]) == ("stories260K", 64, 8)
    assert {row["delta_mse"] for row in run["rows"]} == {None}
    assert "head_dim 8 has no blocks of 32" in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ctx", "257"], "beyond the model's context of 256 tokens; --beyond-context"),
        (["--text", "absent.txt"], "--text absent.txt: No such file"),
        (["--text", "short.txt"], "fewer than one chunk of --ctx 256"),
        (["--model", "absent"], "there is no 'absent'; give demo"),
        (["--json", "absent/out.json"], "--json absent/out.json: cannot write"),
        (["--plot", "absent/out.png"], "--plot absent/out.png: cannot write"),
        (["--plot", "out.txt"], "--plot out.txt: "),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Once upon a time")
    assert coherence.main([*tiny, *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ctx", "7"], "--ctx: expected a whole number of at least 8"),
        (["--interval", "1"], "--interval: expected a whole number of at least 2"),
        (["--chunks", "0"], "--chunks: expected a whole number of at least 1"),
        (["--kv", "q4_0"], "unknown argument '--kv'"),
    ],
)
def test_a_bad_argument_is_one_line(capsys, words, says):
    with pytest.raises(SystemExit) as stopped:
        coherence.main(words)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert says in err
