"""The command from arguments to files and report, and each of its errors in one line."""

import functools
import json
import shlex
from pathlib import Path

import pytest

from deltakv_jax.cli import claims, coherence, perplexity
from deltakv_jax.config import LlamaConfig
from deltakv_jax.evaluation import store
from deltakv_jax.evaluation.claims import document, experiments, general, on_model
from deltakv_jax.evaluation.claims.findings import read_all
from deltakv_jax.model import Llama
from tests.evaluation.claims import samples
from tests.models import random_model

ROOT = Path(__file__).parents[2]
CONFIG = LlamaConfig(
    vocab_size=96,
    width=64,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=32,
    ffn=96,
    context=32,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied=True,
)


@functools.cache
def random_llama() -> Llama:
    return random_model(CONFIG)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with texts, a small random model in place of whatever is asked for."""
    model = random_llama()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        claims.arguments, "load", lambda options: samples.loaded(model, options.model)
    )
    monkeypatch.setattr(general, "claims", lambda: [general.large_model()])
    for name in ("a.txt", "b.txt"):
        Path(name).write_text(samples.text(name).content)
    return tmp_path


@pytest.fixture
def no_runs(monkeypatch):
    """Figures that were made up in place of all runs."""
    monkeypatch.setattr(experiments, "carry_out", lambda *args, **kwargs: samples.evidence())


def test_files_and_report_are_written_and_the_verdicts_shown(here, no_runs, capsys):
    assert claims.main(["--text", "a.txt", "--chunks", "2"]) == 0
    out, err = capsys.readouterr()
    general_, model = read_all(here / "results")
    assert (general_.model, model.model) == (None, "demo")
    assert len(model.claims) == 13
    assert len(model.runs) == 3
    assert Path("RESULTS.md").read_text() == document.render([general_, model])
    shown = " ".join(out.split())
    assert "Better than F16, keyframe every 16 does not hold" in shown
    assert "Numbers, rules and commands: RESULTS.md" in shown
    assert "No chunks of 2048 tokens: the model's context is 32" in err
    assert err.count("\n") == 1


def test_what_stands_behind_the_claims_is_kept(here, no_runs):
    more = f"{document.END}\n## More\n"
    Path("RESULTS.md").write_text(f"# Old\n\n{more}")
    assert claims.main(["--text", "a.txt", "--chunks", "2"]) == 0
    assert (
        Path("RESULTS.md").read_text() == f"{document.render(read_all(here / 'results'))}\n{more}"
    )


def test_another_model_gets_its_section_beside_the_first(here, no_runs):
    words = ["--text", "a.txt", "--out", "new/out", "--report", "R.md"]
    assert claims.main(words) == 0
    assert claims.main([*words, "--model", "another"]) == 0
    content = Path("R.md").read_text()
    assert content.count("## Model: demo") == content.count("## Model: another") == 1
    assert content.count("## Without a model") == 1
    assert "--model another --text a.txt" in content


def test_commands_in_the_report_are_understood(here, no_runs):
    assert claims.main(["--text", "a.txt", "--model", "my model", "--weights", "f32"]) == 0
    parsers = {
        f"scripts/{module.__name__.split('.')[-1]}.py": module.make_parser
        for module in (claims, coherence, perplexity)
    }
    for found in read_all(here / "results"):
        for claim in found.claims:
            for command in claim.commands:
                python, script, *words = shlex.split(command)
                options = parsers[script](None).parse_args(words)
                assert python == "python"
                assert (options.model, options.weights) in [("my model", "f32"), ("FOLDER", None)]


@pytest.fixture
def two_formats(monkeypatch):
    """Real runs of few programs, without the claims that need them all."""
    for name in ("short", "raw"):
        fewer = experiments.PARTS[name]._replace(formats=("f16", "delta"))
        monkeypatch.setitem(experiments.PARTS, name, fewer)
    monkeypatch.setattr(on_model, "claims", lambda evidence, asked: [])


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(here, two_formats, monkeypatch, capsys):
    words = ["--text", "a.txt", "b.txt", "--chunks", "2"]
    assert claims.main([*words, "--out", "whole"]) == 0
    saved, save = [], store.Store.save

    def stop_at_the_third(self, first, batch):
        save(self, first, batch)
        saved.append(first)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(store.Store, "save", stop_at_the_third)
    assert claims.main(words) == 130
    progress = here / "results" / "claims-demo.json.progress"
    assert len(list(progress.rglob("*.npz"))) == 3
    capsys.readouterr()
    assert claims.main(words) == 2
    assert "holds an interrupted run: --resume goes on" in capsys.readouterr().err
    assert claims.main([*words, "--chunks", "3", "--resume"]) == 2
    assert "--chunks" in capsys.readouterr().err
    assert claims.main([*words, "--resume"]) == 0
    assert len(saved) == 4  # of two texts, read from the cache and raw
    assert not progress.exists()
    assert timeless(here / "results") == timeless(here / "whole")


def timeless(folder: Path) -> dict:
    values = json.loads((folder / "claims-demo.json").read_text())
    for run in values["runs"]:
        for row in run["rows"]:
            del row["tokens_per_second"]
    return values


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--text", "absent.txt"], "--text absent.txt: No such file"),
        (["--text", "a.txt", "./a.txt"], "--text: two texts have one name"),
        (["--text", "short.txt"], "--text short.txt has no chunk of 32 tokens; give a longer text"),
        (["--out", "a.txt"], "--out a.txt: File exists"),
        (["--report", "."], "--report . is a folder"),
        (["--report", "absent/R.md"], "--report absent/R.md: cannot write"),
    ],
)
def test_bad_input_is_one_line(here, capsys, words, says):
    Path("short.txt").write_text("Once upon a time")
    assert claims.main(["--text", "a.txt", *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert says in err


def test_a_bad_argument_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        claims.main(["--chunks", "0"])
    assert stopped.value.code == 2
    assert "--chunks: expected a whole number of at least 1" in capsys.readouterr().err


def test_a_damaged_file_in_the_folder_is_named_before_the_runs(here, capsys):
    Path("results").mkdir()
    Path("results/claims-old.json").write_text("{")
    assert claims.main(["--text", "a.txt"]) == 2
    assert "results/claims-old.json is no JSON" in capsys.readouterr().err


def test_defaults_are_the_demo_on_two_texts():
    options = claims.make_parser(None).parse_args([])
    assert (options.model, options.text) == ("demo", ["python-docs", "python-code"])
    assert (options.out, options.report) == (Path("results"), Path("RESULTS.md"))
