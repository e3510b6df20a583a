"""The parts of the benchmarks of packed products that can be wrong without a clock saying so."""

import json

import jax
import numpy as np
import pytest

from deltakv_jax.config import LlamaConfig
from deltakv_jax.linear import Stack
from deltakv_jax.planning.presets import PRESETS
from deltakv_pallas.matvec import bytes_read
from scripts.bench import decode_70b, decode_speed, inference, matvec, matvec_speed, timing
from scripts.bench.random_leaves import random_matrix
from scripts.bench.results import Row
from scripts.bench.shapes import MATRICES

SHAPE = (8, 256)
TINY = LlamaConfig(  # all its matrices have one shape
    vocab_size=32,
    width=32,
    layers=2,
    heads=1,
    kv_heads=1,
    head_dim=32,
    ffn=32,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=False,
)


@pytest.fixture
def _no_settings(monkeypatch):
    """The setting of a run would stay for the tests that follow."""
    monkeypatch.setattr(inference.jax.config, "update", lambda *setting: None)


@pytest.mark.parametrize("kind", matvec_speed.KINDS)
def test_bytes_are_those_of_the_leaves(kind):
    matrix = jax.eval_shape(lambda: random_matrix(kind, SHAPE[0], values=SHAPE[1]))
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(matrix))
    assert bytes_read(matvec_speed.blocks_of(kind), *SHAPE) == stored


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack([random_matrix("q4_0", 3, SHAPE[0], values=SHAPE[1])])


def test_random_weights_are_finite_and_differ_by_layer(stack):
    (kind,) = stack.kinds
    values = np.asarray(kind.format.dequantize(kind.arrays()))
    assert 0.5 < np.std(values) * SHAPE[1] ** 0.5 < 5
    assert len(np.unique(values[:, 0, 0])) == 3


def test_every_layer_takes_its_turn(stack, monkeypatch):
    """The loop of five ends with the second layer, times the second of the vectors."""
    works = []
    monkeypatch.setattr(timing, "timed", lambda work: works.append(work) or (lambda: 6.0))
    assert matvec_speed.product_timer(stack, SHAPE, batch=2, least=5)() == 6 / 5
    x = jax.random.normal(jax.random.key(1), (3, 2, SHAPE[1]))
    np.testing.assert_allclose(works[0](), jax.jit(stack.product)(x[1], 1), rtol=1e-4, atol=1e-5)


def test_layers_are_so_many_that_no_cache_holds_them():
    sizes = {name: 4.5 / 8 * rows * values for name, (rows, values) in MATRICES.items()}
    layers = {name: matvec_speed.layers_of(round(size)) for name, size in sizes.items()}
    assert layers["llama3_70b_head"] == 2
    assert all(n * sizes[name] > 2**27 for name, n in layers.items())


def test_rows_compare_with_the_copy_with_xla_and_with_bfloat16(monkeypatch):
    seconds = {"copy": 1.0, "bf16": 0.4, "q4_0": 0.1, "q4_0 by xla": 0.8}
    monkeypatch.setitem(MATRICES, "llama3_70b_gate", SHAPE)
    monkeypatch.setattr(timing, "copy_timers", lambda: {"copy": lambda: 1.0})
    monkeypatch.setattr(matvec_speed, "product_timer", lambda *words: lambda: 1.0)
    monkeypatch.setattr(timing, "interleaved", lambda timers, rounds: seconds)
    monkeypatch.setattr(timing, "COPY_BYTES", 1e6)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    dense, packed, xla, bf16 = matvec_speed.rows("llama3_70b_gate", ["q4_0"], "pallas", 1)
    size = SHAPE[0] * SHAPE[1]
    assert (dense.ratio, dense.goal) == (pytest.approx(2 * size / 0.4 / 1e6), "")
    assert (packed.ratio, packed.goal) == (pytest.approx(size * 4.5 / 8 / 0.1 / 1e6), "≥ 0.75")
    assert (xla.ratio, bf16.ratio) == (pytest.approx(0.125), pytest.approx(0.25))


@pytest.mark.usefixtures("_no_settings")
def test_the_script_prints_and_writes_rows_of_every_shape(tmp_path, monkeypatch, capsys):
    asked = []
    row = Row(part="p", shape="s", what="w", figure=2.0, unit="µs", ratio=0.5)
    monkeypatch.setattr(matvec_speed, "rows", lambda *words: asked.append(words) or [row])
    file = tmp_path / "matvec.json"
    words = ["--shape", "llama3_8b_key", "--weights", "q6_k", "--linear", "pallas"]
    assert matvec.main([*words, "--json", str(file)]) == 0
    assert asked == [("llama3_8b_key", ["q6_k"], "pallas", 1)]
    assert "0.50" in capsys.readouterr().out
    assert [row["ratio"] for row in json.loads(file.read_text())["rows"]] == [0.5]


@pytest.mark.usefixtures("_no_settings")
def test_a_random_model_decodes_where_its_cache_is_full(monkeypatch, capsys):
    """The real steps, of a tiny model; what they read is weights and the tokens that are held."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setattr(timing, "copy_timers", lambda: {"copy": lambda: 1.0})
    monkeypatch.setattr(decode_speed, "ROUNDS", 1)
    assert decode_70b.main(["--model", "tiny", "--kv", "delta", "--context", "32"]) == 0
    out = capsys.readouterr().out
    assert "tiny q4_0, 32 tokens" in out
    cache = 2 * 2 * 32 * 32 * 5 // 8  # K and V, two layers, 32 tokens of 32 values, 5 bits
    weights = (2 * 7 + 1) * 32 * 32 * 4.5 / 8 + 5 * 32 * 4  # with the head, and five norms
    assert f"{(cache + weights) / 1e9:.4g} GB must be read" in out
