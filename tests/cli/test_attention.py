"""`--attention`: what is asked for by name runs or is refused, and says so."""

import json

import pytest

from deltakv_jax.cli.decode import main as decode
from deltakv_jax.cli.perplexity import main as perplexity


def decoded(capsys, *arguments: str) -> dict:
    """The JSON of a run of the demo model."""
    assert decode(["--max-new-tokens", "2", "--json", "-", *arguments]) == 0
    out, err = capsys.readouterr()
    return json.loads(out) | {"said": err}


def test_an_interpreted_run_says_so(capsys):
    interpreted = decoded(capsys, "--kv", "delta", "--attention", "pallas-interpret")
    assert interpreted["attention"] == "pallas-interpret"
    assert "INTERPRETED: no measure of its speed" in interpreted["said"]


@pytest.mark.parametrize("command", [decode, perplexity])
def test_the_kernel_is_refused_without_a_gpu(capsys, command):
    assert command(["--attention", "pallas"]) == 2
    assert "--attention pallas needs a GPU, and JAX runs on a cpu here" in capsys.readouterr().err


def test_what_is_no_reading_of_the_cache_is_not_by_the_kernel(capsys):
    assert perplexity(["--attention", "pallas-interpret", "--reads", "raw"]) == 2
    assert "leave out --by-layer and --reads raw" in capsys.readouterr().err


@pytest.mark.slow
def test_the_kernel_gives_the_tokens_of_xla(capsys, shared):
    """With an f32 cache, whose products are float32 in both."""
    model = str(shared / "models" / "tiny1m")
    arguments = ["--model", model, "--prompt", "Once upon a time", "--kv", "f32"]
    runs = [
        decoded(capsys, *arguments, "--max-new-tokens", "100", "--attention", attention)
        for attention in ("xla", "pallas-interpret")
    ]
    first, second = (run["sequences"] for run in runs)
    assert first == second
    assert len(first[0]["tokens"]) == 100


@pytest.mark.slow
def test_perplexity_through_the_kernel(capsys, shared):
    """A prompt's tokens are query rows of the same kernel."""
    arguments = [
        "--model", str(shared / "models" / "tiny1m"), "--ctx", "64", "--chunks", "4",
        "--text", str(shared / "texts" / "tinystories.txt"), "--kv", "f32", "delta", "--json", "-",
    ]  # fmt: skip
    rows = []
    for attention in ("xla", "pallas-interpret"):
        assert perplexity([*arguments, "--attention", attention]) == 0
        rows.append(json.loads(capsys.readouterr().out)["runs"][0]["rows"])
    for xla, kernel in zip(*rows, strict=True):
        assert kernel["ppl"] == pytest.approx(xla["ppl"], rel=1e-3)
