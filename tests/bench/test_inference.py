"""The parts of the benchmark that can be wrong without a clock saying so."""

import json

import jax
import pytest

from deltakv_jax.config import LlamaConfig
from scripts.bench import inference, model_speed, timing
from scripts.bench.results import Row
from scripts.bench.shapes import MODELS

TINY = LlamaConfig(
    vocab_size=64,
    width=32,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=48,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)
ROW = Row(part="p", shape="s", what="w", figure=2.0, unit="ms", ratio=1.25)


def test_weights_are_counted_as_the_model_has_them():
    model = model_speed.random_model(TINY)
    matrices = [leaf for leaf in jax.tree.leaves(model) if leaf.ndim == 3]
    head = TINY.vocab_size * TINY.width
    per_token = 2 * sum(matrix.size for matrix in matrices)
    assert model_speed.weight_flops(TINY, 7, logits=1) == 7 * per_token + 2 * head
    norms = (2 * TINY.layers + 1) * TINY.width
    assert model_speed.weight_bytes(model) == 4 * (per_token // 2 + head + norms)


def test_the_model_of_100_million_has_them():
    flops = model_speed.weight_flops(MODELS["llama_100m"], 1, logits=1)
    assert flops / 2 == pytest.approx(100e6, rel=0.01)


def test_a_decode_timer_goes_on_until_its_last_round():
    timer = model_speed.decode_timer(model_speed.random_model(TINY), "f16")
    assert all(timer() > 0 for _ in range(model_speed.DECODE_ROUNDS + 1))


def test_timers_take_turns_in_changing_order_and_the_first_round_does_not_count():
    calls = []
    seconds = {"a": iter([99.0, 1.0, 5.0, 2.0]), "b": iter([99.0, 7.0, 8.0, 9.0])}

    def timer(name):
        calls.append(name)
        return next(seconds[name])

    timers = {name: lambda name=name: timer(name) for name in seconds}
    assert timing.interleaved(timers, 3) == {"a": 2.0, "b": 8.0}
    rounds = [tuple(calls[i : i + 2]) for i in range(0, 8, 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}


@pytest.mark.parametrize(
    ("goal", "words", "met"),
    [
        ({}, "", None),
        ({"most": 1.3}, "≤ 1.30", True),
        ({"most": 1.2}, "≤ 1.20", False),
        ({"least": 1.2}, "≥ 1.20", True),
        ({"least": 1.3}, "≥ 1.30", False),
    ],
)
def test_a_goal_is_met_or_not(goal, words, met):
    row = Row(part="p", shape="s", what="w", figure=2.0, unit="ms", ratio=1.25, **goal)
    assert (row.goal, row.met) == (words, met)


def test_the_script_prints_and_writes_its_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(inference.PARTS, "decode", lambda: [ROW])
    # the setting would stay for the tests that follow
    monkeypatch.setattr(inference.jax.config, "update", lambda *setting: None)
    file = tmp_path / "bench.json"
    assert inference.main(["--only", "decode", "--json", str(file)]) == 0
    assert "1.25" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["rows"][0]["ratio"] == 1.25
    assert {"device", "jax", "python", "platform", "commit", "date"} <= set(document)


def test_an_unknown_part_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        inference.main(["--only", "cooking"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
