import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention.rope import apply_rope, inverse_frequencies, rope_tables
from deltakv_jax.config import LlamaConfig, RopeScaling
from deltakv_jax.errors import UserError

CONFIG = LlamaConfig(
    vocab_size=8,
    width=8,
    layers=1,
    heads=1,
    kv_heads=1,
    head_dim=8,
    ffn=8,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)


def config(**changes) -> LlamaConfig:
    return dataclasses.replace(CONFIG, **changes)


def test_frequencies_fall_from_one_by_powers_of_theta():
    np.testing.assert_allclose(inverse_frequencies(config()), [1, 0.1, 0.01, 0.001], rtol=1e-6)


def test_scaling_keeps_high_divides_low_and_passes_between():
    scaling = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=1000
    )
    turns = 1000 * np.array([1, 0.1, 0.01, 0.001]) / (2 * np.pi)  # 159, 15.9, 1.59, 0.159
    kept = (turns[2] - 1) / 3
    expected = [1, 0.1, 0.01 * (kept + (1 - kept) / 8), 0.001 / 8]
    np.testing.assert_allclose(
        inverse_frequencies(config(rope_scaling=scaling)), expected, rtol=1e-6
    )


def test_factors_divide_each_frequency():
    got = inverse_frequencies(config(rope_factors=(1.0, 2.0, 4.0, 8.0)))
    np.testing.assert_allclose(got, [1, 0.1 / 2, 0.01 / 4, 0.001 / 8], rtol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_factors": (1.0,) * 3}, "rope_factors must be 4, half of head_dim, got 3"),
        ({"rope_factors": (1.0, 0.0, 1.0, 1.0)}, "must be positive and finite, got 0.0"),
        ({"rope_factors": (1.0, 1.0, float("inf"), 1.0)}, "must be positive and finite, got inf"),
        ({"rope_factors": (float("nan"),) * 4}, "must be positive and finite, got nan"),
    ],
)
def test_factors_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        config(**changes)


def test_factors_and_scaling_exclude_each_other():
    scaling = RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=1000
    )
    with pytest.raises(UserError, match="rope_factors and rope_scaling exclude each other"):
        config(rope_factors=(1.0,) * 4, rope_scaling=scaling)


def test_a_vector_is_turned_by_its_angle():
    tables = rope_tables(config(head_dim=2), jnp.array([[0, 1, 3]]))
    x = jnp.ones((1, 3, 1, 2)) * jnp.array([1.0, 0.0])
    got = apply_rope(x, tables)[0, :, 0]
    np.testing.assert_allclose(got, [[np.cos(a), np.sin(a)] for a in (0, 1, 3)], atol=1e-6)


def test_halves_are_paired_not_neighbours():
    x = jnp.zeros((1, 1, 1, 8)).at[..., 0].set(1.0)
    got = apply_rope(x, rope_tables(config(), jnp.array([[1]])))[0, 0, 0]
    expected = np.zeros(8)
    expected[[0, 4]] = np.cos(1), np.sin(1)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("shift", [1, 1000])
def test_scores_depend_on_the_distance_alone(shift):
    rng = np.random.default_rng(0)
    q, k = jnp.asarray(rng.standard_normal((2, 1, 1, 1, 8)), jnp.float32)

    def score(at_q: int, at_k: int) -> float:
        turn = lambda x, at: apply_rope(x, rope_tables(config(), jnp.array([[at]])))
        return float(jnp.vdot(turn(q, at_q), turn(k, at_k)))

    assert score(7 + shift, 2 + shift) == pytest.approx(score(7, 2), abs=2e-4)
