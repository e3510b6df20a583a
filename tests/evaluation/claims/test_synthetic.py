"""The published arithmetic and random walk: the recipe, and what comes out of it."""

import numpy as np
import pytest

from deltakv_jax.evaluation.claims import general, synthetic
from deltakv_jax.evaluation.claims.verdicts import FAILS, HOLDS

PUBLISHED = {0.01: 10778, 0.05: 991, 0.10: 609, 0.20: 495}


@pytest.fixture
def few_walks(monkeypatch):
    synthetic.walk_gain.cache_clear()
    monkeypatch.setattr(synthetic, "SEEDS", 3)
    yield
    synthetic.walk_gain.cache_clear()


@pytest.mark.parametrize("steps", range(1, 8))
def test_the_worked_value_comes_back_as_published_in_its_block(steps):
    found = synthetic.worked(0.5432, 0.51, steps)
    assert found.decoded == pytest.approx(0.51, rel=2**-10)  # a float16 scale
    assert found.largest == pytest.approx(4.08 / steps)
    assert found.error == pytest.approx(0.0332, rel=0.01)


def test_an_error_goes_with_the_range_of_its_block():
    assert synthetic.scale_gain(1) == pytest.approx(1, rel=0.01)
    assert synthetic.scale_gain(170) == pytest.approx(170, rel=0.01)


@pytest.mark.parametrize("normal", [False, True])
def test_a_walk_follows_the_recipe(normal):
    x = synthetic.walk(0.1, normal=normal, seed=1)
    assert (x.shape, x.dtype) == ((512, 1024), np.float32)
    assert 0.99 < np.abs(x[0]).max() <= 1
    steps = np.diff(x.astype(np.float64), axis=0)
    assert steps.std() == pytest.approx(0.1 if normal else 0.1 / 3**0.5, rel=0.01)
    assert (np.abs(steps).max() <= 0.1 + 1e-5) is not normal
    assert np.abs(x[0] - synthetic.walk(0.1, normal=normal, seed=2)[0]).max() > 0.1


@pytest.mark.parametrize("drift", PUBLISHED)
def test_the_published_table_comes_out_of_uniform_steps(few_walks, drift):
    gain = synthetic.walk_gain(drift, normal=False)
    assert gain.mean.value == pytest.approx(PUBLISHED[drift], rel=0.1)
    assert gain.least <= gain.mean.value <= gain.most
    assert gain.mean.stderr < 0.05 * gain.mean.value


def test_the_gain_is_that_of_the_definitions():
    """Against q4_0 and a closed loop in numpy, both in float64 but for the float16 scales."""
    x = synthetic.walk(0.05, normal=False, seed=0)
    want = np.mean((q4_0(x) - x) ** 2) / np.mean((delta(x) - x) ** 2)
    got = synthetic.mean_squared_error(synthetic.Q4_0, x) / synthetic.mean_squared_error(
        synthetic.DELTA, x
    )
    assert got == pytest.approx(want, rel=0.01)


def q4_0(x: np.ndarray) -> np.ndarray:
    blocks = x.reshape(*x.shape[:-1], -1, 32).astype(np.float64)
    at = np.abs(blocks).argmax(-1)[..., None]
    scale = np.take_along_axis(blocks, at, -1) / -8
    codes = np.minimum(np.trunc(blocks / np.where(scale == 0, 1, scale) + 8.5), 15)
    return ((codes - 8) * scale.astype(np.float16)).reshape(x.shape)


def delta(x: np.ndarray) -> np.ndarray:
    out = np.zeros(x.shape)
    for t, row in enumerate(x):
        key = row.astype(np.float16).astype(np.float64)
        out[t] = key if t % 32 == 0 else out[t - 1] + q4_0(row - out[t - 1])
    return out


def test_the_claims_without_a_model(few_walks):
    value, walk, large = general.claims()
    assert value.verdict.startswith("holds only when the differences of a block are about 170")
    assert [round(case.value) for case in value.cases] == [166, 166, 1]
    assert walk.verdict == "holds only when tokens are a random walk of uniform steps"
    assert [case.verdict for case in walk.cases] == [HOLDS] * 4 + [FAILS] * 4
    assert [case.claimed_low for case in walk.cases[:4]] == [0.9 * x for x in PUBLISHED.values()]
    assert large.verdict == "not measured here"
    assert any("--ctx 2048" in command for command in large.commands)
