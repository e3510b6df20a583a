"""The parts of the benchmark of weights that can be wrong without a clock saying so."""

import jax
import numpy as np
import pytest

from deltakv_jax.config import LlamaConfig
from deltakv_jax.weights.assemble import assemble
from scripts.bench import model_speed, timing, weights

TINY = LlamaConfig(
    vocab_size=64,
    width=32,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=16,
    ffn=64,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)


def test_a_random_checkpoint_has_the_values_of_a_fresh_model():
    model = assemble(weights.RandomSource(TINY), "f32")
    (down,) = jax.tree.leaves(model.down)
    assert np.std(down) == pytest.approx(TINY.ffn**-0.5, rel=0.05)
    first, second = down
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(model.ffn_norm[...], 1)


def test_rows_compare_types_with_the_copy_and_packed_with_dense(monkeypatch):
    seconds = {"copy": 2.0, "f32": 0.4, "bf16": 0.2, "q8_0": 0.15, "q4_0": 0.1}
    monkeypatch.setattr(timing, "copy_timers", lambda: {"copy": lambda: 2.0})
    monkeypatch.setattr(model_speed, "decode_timer", lambda model, kv: lambda: 1.0)
    monkeypatch.setattr(timing, "interleaved", lambda timers, rounds: seconds)
    monkeypatch.setattr(timing, "COPY_BYTES", 2e9)
    *copies, bf16, f32 = weights.rows(TINY)
    assert [row.what for row in copies] == list(weights.WEIGHTS)
    size = model_speed.weight_bytes(assemble(weights.RandomSource(TINY), "q4_0"))
    assert copies[-1].ratio == pytest.approx(size / 0.1 / 1e9)
    assert (bf16.ratio, f32.ratio) == (0.5, 0.25)
    assert bf16.met
