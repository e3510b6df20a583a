"""Positions against a table of which prediction stands where."""

import numpy as np
import pytest

from deltakv_jax.evaluation.profiles import by_group_position, by_position


def test_each_group_position_takes_its_own_predictions():
    """Scored are 12 … 22 of 3 chunks; the divergence of a prediction is its position mod 8."""
    first, count = 12, 11
    n = (first + np.arange(count)) % 8
    kld = np.tile(n.astype(float), (3, 1))
    got = by_group_position(kld, -kld, first, 8)
    assert got.at == tuple(range(8))
    assert got.kld == tuple(range(8))
    assert got.delta_ln_ppl == tuple(-x for x in range(8))
    assert set(got.kld_stderr) == {0}


def test_group_positions_that_were_not_scored_are_absent():
    got = by_group_position(np.ones((2, 3)), np.ones((2, 3)), 10, 8)
    assert got.at == (2, 3, 4)


def test_positions_of_the_context_are_binned_in_order():
    kld = np.tile(np.arange(128.0), (2, 1))
    got = by_position(kld, kld, first=100)
    assert len(got.at) == 32
    assert got.at[0] == pytest.approx(100 + 1.5)
    assert got.kld[0] == pytest.approx(1.5)
    assert got.at[-1] == pytest.approx(100 + 125.5)
    assert got.delta_ln_ppl[-1] == pytest.approx(125.5)


def test_few_positions_are_a_bin_each():
    got = by_position(np.arange(6.0).reshape(2, 3), np.zeros((2, 3)), first=4)
    assert got.at == (4, 5, 6)
    assert got.kld == (1.5, 2.5, 3.5)
    assert got.kld_stderr == pytest.approx([1.5] * 3)  # of 0 and 3: 2.12 / sqrt(2)
