"""The sweep from arguments to tables, JSON and picture, on a little model."""

import json
from pathlib import Path

import pytest

from deltakv_jax.cli import sweep
from deltakv_jax.evaluation import runner

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(shared, tmp_path, monkeypatch) -> list[str]:
    """A model with a context of 256, in a folder with a text and one of about 40 tokens."""
    monkeypatch.chdir(tmp_path)
    story = (shared / "texts" / "tinystories.txt").read_text()
    Path("short.txt").write_text(story[:120])
    Path("story.txt").write_text(story[:4000])
    model = str(shared / "models" / "tiny1m")
    return ["--model", model, "--text", "story.txt", "--kv", "f16", "delta"]


def runs_of(path: str) -> list[dict]:
    """The runs of a JSON file, without their speeds."""
    runs = json.loads(Path(path).read_text())["runs"]
    for run in runs:
        for row in run["rows"]:
            del row["tokens_per_second"]
    return runs


def test_the_table_the_json_and_the_picture_hold_every_cell(tiny, capsys):
    words = ["--ctx", "64", "32", "--tokens", "200", "--text", "story.txt", "short.txt"]
    assert sweep.main([*tiny, *words, "--json", "out.json", "--plot", "out.png"], "tool") == 0
    out, err = capsys.readouterr()
    (said,) = (line for line in err.splitlines() if line.startswith("tool:"))
    assert said.startswith("tool: left out short.txt at --ctx 64: the text has ")
    runs = runs_of("out.json")
    cells = [(run["text"], run["ctx"], run["chunks"]) for run in runs]
    assert cells == [("story.txt", 32, 6), ("story.txt", 64, 3), ("short.txt", 32, 1)]
    assert all([row["kv"] for row in run["rows"]] == ["f16", "delta"] for run in runs)
    table = [line.split() for line in out.splitlines()]
    assert ["KV", "ctx", "32", "ctx", "64"] in table
    assert ["f16", "perplexity", *(f"{run['rows'][0]['ppl']:.4f}" for run in runs[:2])] in table
    assert ["f16", "perplexity", f"{runs[2]['rows'][0]['ppl']:.4f}"] in table
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in Path().iterdir())
    assert names == ["out.json", "out.png", "short.txt", "story.txt"]


def test_an_interrupted_sweep_goes_on_where_it_stopped(tiny, monkeypatch, capsys):
    words = [*tiny, "--ctx", "32", "64", "--tokens", "128", "--json", "out.json"]
    measured = []
    measure = runner.measure

    def stop(model, chunks, settings, progress, *more):
        if settings.ctx == 64 and len(measured) < 2:
            raise KeyboardInterrupt
        batches = list(measure(model, chunks, settings, progress, *more))
        measured.append(sum(len(batch.nll[0]) for _, batch in batches))
        return iter(batches)

    monkeypatch.setattr(runner, "measure", stop)
    assert sweep.main(words) == 130
    assert not Path("out.json").exists()
    assert sweep.main(words) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert sweep.main([*words, "--resume"]) == 0
    assert measured == [4, 0, 2]  # chunks: those of 32 tokens were there already
    resumed = runs_of("out.json")
    assert sweep.main([*words]) == 0
    assert runs_of("out.json") == resumed


def test_the_usual_contexts_end_where_the_model_does(tiny, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(sweep, "_runs", lambda options, loaded, cells, say: asked.extend(cells))
    monkeypatch.setattr(sweep.sweep, "by_text", lambda runs: [])
    monkeypatch.setattr(sweep.report, "to_json", lambda runs, calibration: "")
    assert sweep.main(tiny) == 0
    assert [cell.settings.ctx for cell in asked] == [256]
    asked.clear()
    assert sweep.main([*tiny, "--beyond-context"]) == 0
    assert [cell.settings.ctx for cell in asked] == [512, 1024]
    err = capsys.readouterr().err
    assert "warning: --ctx 512 is beyond the model's context of 256" in err
    assert "left out story.txt at --ctx 2048" in err


def test_the_protocol_is_passed_on(tiny, capsys):
    words = ["--protocol", "gptq", "--ctx", "32", "--tokens", "64", "--json", "-"]
    assert sweep.main([*tiny, *words]) == 0
    out, err = capsys.readouterr()
    (run,) = json.loads(out)["runs"]
    assert (run["protocol"], run["tokens_scored"]) == ("gptq", 2 * 31)
    assert "f16 perplexity" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--kv", "q5_9"], "unknown KV format 'q5_9'"),
        (["--ctx", "64", "257"], "--ctx 257 is beyond the model's context of 256 tokens"),
        (["--ctx", "64", "--tokens", "63"], "--tokens 63 is less than one chunk of --ctx 64"),
        (["--text", "absent.txt"], "--text absent.txt: No such file"),
        (["--json", "absent/out.json"], "--json absent/out.json: cannot write"),
        (["--plot", "out.txt"], "--plot out.txt: a picture's name ends with"),
        (["--plot", "absent/out.png"], "--plot absent/out.png: cannot write"),
        (["--resume"], "--resume needs --json FILE"),
    ],
)
def test_bad_input_is_one_line(tiny, capsys, words, says):
    assert sweep.main([*tiny, *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert says in err


def test_where_no_text_fills_a_chunk_nothing_is_left(tiny, capsys):
    assert sweep.main([*tiny, "--text", "short.txt", "--ctx", "64", "128"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert ["left out" in line for line in lines] == [True, True, False]
    assert "nothing is left to measure" in lines[-1]
