"""Figures against their definitions, and what pairing is for."""

import math

import numpy as np
import pytest

from deltakv_jax.evaluation import statistics


def draw(n: int = 1000) -> np.ndarray:
    return np.random.default_rng(0).gamma(2.0, size=n)


def test_perplexity_and_its_error_are_those_of_llama_perplexity():
    nll = draw()
    got = statistics.perplexity(nll)
    variance = np.mean(nll**2) - np.mean(nll) ** 2
    assert got.value == pytest.approx(math.exp(np.mean(nll)), rel=1e-14)
    assert got.stderr == pytest.approx(got.value * math.sqrt(variance / 999), rel=1e-12)


def test_small_worked_example():
    """nll 0 and 2 ln 2: mean ln 2, so perplexity 2; variance (ln 2)^2 over n - 1 = 1."""
    got = statistics.perplexity(np.array([0.0, 2 * math.log(2)]))
    assert got.value == pytest.approx(2)
    assert got.stderr == pytest.approx(2 * math.log(2))


def test_the_error_of_a_change_is_paired():
    """A constant change has no error, however uneven the tokens are."""
    nll = draw()
    got = statistics.log_perplexity_change(nll + 0.01, nll)
    assert got.value == pytest.approx(0.01)
    assert got.stderr < 1e-12


def test_a_change_is_that_of_the_logarithm_of_perplexity():
    base, nll = draw(), draw() * 1.1
    ratio = statistics.perplexity(nll).value / statistics.perplexity(base).value
    assert statistics.log_perplexity_change(nll, base).value == pytest.approx(math.log(ratio))


def test_the_base_against_itself_is_exactly_zero():
    nll = draw()
    assert statistics.log_perplexity_change(nll, nll) == statistics.Estimate(0.0, 0.0)


def test_percent_is_of_perplexity():
    got = statistics.percent(statistics.Estimate(math.log(1.05), 0.01))
    assert got.value == pytest.approx(5)
    assert got.stderr == pytest.approx(1.05)


def test_percentile_interpolates():
    values = np.arange(1001.0)
    assert statistics.percentile(values, 0.999) == pytest.approx(999)
    assert statistics.percentile(values[:2], 0.999) == pytest.approx(0.999)


def test_share_counts_true_values():
    assert statistics.share(np.array([True, False, True, True])) == 0.75


def test_a_single_value_has_no_error():
    assert statistics.mean(np.array([2.0])) == statistics.Estimate(2.0, 0.0)


def interval(means: np.ndarray) -> tuple[float, float]:
    found = statistics.bootstrap_interval(means)
    assert found is not None
    return found


def test_the_bootstrap_finds_the_interval_of_a_normal_mean():
    """Of 400 independent chunks: 1.96 standard errors on either side, and the same every time."""
    means = np.random.default_rng(1).normal(0.02, 0.1, 400)
    low, high = interval(means)
    error = means.std(ddof=1) / 20
    assert low == pytest.approx(means.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(means.mean() + 1.96 * error, abs=0.1 * error)
    assert statistics.bootstrap_interval(means) == (low, high)


def test_the_bootstrap_sees_that_tokens_of_a_chunk_err_together():
    """The standard error over tokens does not, and is far too small."""
    rng = np.random.default_rng(2)
    changes = np.repeat(rng.normal(size=(30, 1)), 200, axis=1)
    low, high = interval(changes.mean(axis=1))
    assert high - low > 8 * 3.92 * statistics.mean(changes.ravel()).stderr


def test_a_single_chunk_has_no_interval():
    assert statistics.bootstrap_interval(np.array([0.1])) is None


def test_root_mean_square():
    assert statistics.root_mean_square(np.array([3.0, -4.0])) == pytest.approx(12.5**0.5)
