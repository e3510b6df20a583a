"""Means against numpy's of captured keys and values, and costs against divergences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention import attend_plain
from deltakv_jax.evaluation.capture import ARRAYS, capture
from deltakv_jax.evaluation.learning import SKIPPED, Learned, learn
from deltakv_jax.evaluation.scoring import kl_divergence
from tests.calibration.material import CONFIG, model, random_tokens

CTX = 40
NOISE = 0.02  # of a side, relative to what is left of it without its mean


@functools.cache
def learned() -> dict[str, Learned]:
    return learn(model(), random_tokens(12, CTX))


def captured(chunks: int) -> np.ndarray:
    """[c l a k t d]"""
    return np.stack([capture(model(), tokens) for tokens in random_tokens(chunks, CTX)])


def test_means_are_those_of_captured_keys_and_values():
    arrays = captured(12)[..., SKIPPED:, :].astype(np.float64)
    for side, name in (("k", "k_before_rope"), ("v", "v")):
        values = arrays[:, :, ARRAYS.index(name)]
        np.testing.assert_allclose(learned()[side].mean, values.mean(axis=(0, 3)), atol=2e-6)
        np.testing.assert_allclose(learned()[side].square, (values**2).mean(axis=(0, 3)), rtol=1e-5)


def test_every_pass_is_told_of():
    told = []
    learn(model(), random_tokens(2, CTX), told.append)
    assert told == [1] * 4


@jax.jit
def log_probabilities(tokens, k_error, v_error):
    """Of what the second half of a chunk predicts, with errors [l t k d] in K and V."""

    def attend(layer, q, k, v, rope, cache):
        return attend_plain(layer, q, k + k_error[layer], v + v_error[layer], rope, cache)

    positions = jnp.arange(CTX)[None]
    hidden, _ = model().hidden(tokens[None], positions, None, attend=attend)
    return jax.nn.log_softmax(model().logits(hidden[0, CTX // 2 : -1]))


def divergence(side: str, layer: int) -> float:
    """Mean KL divergence with white noise in one side of one layer, for each unit of its square."""
    one, found = learned()[side], []
    spread = np.sqrt((one.square - one.mean**2).mean(axis=-1))[layer][:, None]
    none = np.zeros((CONFIG.layers, CTX, CONFIG.kv_heads, CONFIG.head_dim), np.float32)
    for seed, tokens in enumerate(random_tokens(12, CTX)):
        noise = np.random.default_rng(seed).standard_normal(none.shape[1:])
        error = none.copy()
        error[layer] = NOISE * spread * noise
        errors = (error, none) if side == "k" else (none, error)
        exact, noisy = log_probabilities(tokens, none, none), log_probabilities(tokens, *errors)
        found.append(float(jnp.mean(kl_divergence(exact, noisy))))
    return float(np.mean(found)) / NOISE**2


@pytest.mark.parametrize("side", ["k", "v"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_cost_is_the_divergence_for_each_unit_of_squared_error(side, layer):
    """As far as a few drawn tokens and a few drawn errors tell."""
    assert learned()[side].cost(centred=True)[layer] == pytest.approx(
        divergence(side, layer), rel=0.2
    )


def test_errors_relative_to_all_of_a_side_cost_more():
    for one in learned().values():
        share = (one.square - one.mean**2).sum(axis=-1) / one.square.sum(axis=-1)
        ratio = one.cost(centred=True) / one.cost(centred=False)
        assert np.all((ratio < 1) & (ratio > share.min()) & (ratio < share.max() + 1e-9))


def test_the_share_of_the_mean():
    mean = np.array([[[3.0, 0.0]], [[0.0, 1.0]]])
    square = np.array([[[9.0, 16.0]], [[0.0, 1.0]]])
    share = Learned(mean, square, np.ones((2, 1))).mean_share()
    np.testing.assert_allclose(share, [0.6, 1.0])
