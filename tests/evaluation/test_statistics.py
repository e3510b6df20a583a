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
