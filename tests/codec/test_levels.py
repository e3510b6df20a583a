"""Codes of few bits: what their scales mean, that the best are taken, and the bytes for ever."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltakv_jax.codec import parse_spec
from deltakv_jax.codec.levels import EVEN, LEVELS, Levels, quantize_levels, scale_values

EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True)
GOLDEN = Path(__file__).parents[1] / "golden" / "layered.npz"
quantize = jax.jit(quantize_levels, static_argnums=(1, 2))


def layered(bits: int) -> Any:
    return parse_spec(f"layered:bits={bits}").k


def scales_by_hand(bytes_: np.ndarray) -> np.ndarray:
    """5 bits of exponent, 3 of mantissa."""
    return 2.0 ** (bytes_ // 8 - 15.0) * (1 + bytes_ % 8 / 8)


def levels_by_hand(levels: Levels) -> np.ndarray:
    n = 2.0 * np.arange(2**levels.bits) + 1 - 2**levels.bits
    return n * (1 + levels.bend / 4096 * n**2)


def test_every_scale():
    every = np.arange(248)
    np.testing.assert_array_equal(scale_values(jnp.array(every, jnp.uint8)), scales_by_hand(every))
    assert scales_by_hand(np.array(247)) == 61440


@pytest.mark.parametrize("levels", [*LEVELS.values(), EVEN])
def test_levels_times_scales_are_exact_in_float32(levels):
    """So that what is read back does not depend on the program."""
    product = scales_by_hand(np.arange(248))[:, None] * levels_by_hand(levels)
    np.testing.assert_array_equal(product.astype(np.float32), product)


ROWS = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([1e-4, 0.02, 1.0, 300.0]))


@pytest.mark.parametrize("levels", [*LEVELS.values(), EVEN])
@given(ROWS)
@EXAMPLES
def test_codes_are_the_nearest_and_the_scale_the_best_of_those_tried(levels, drawn):
    seed, size = drawn
    x = (np.random.default_rng(seed).standard_normal((8, 64)) * size).astype(np.float32)
    codes, scales = map(np.asarray, quantize(jnp.array(x), levels, 32))
    table, parts = levels_by_hand(levels), x.reshape(8, 2, 32).astype(np.float64)
    distance = lambda byte: abs(parts[..., None] - scales_by_hand(byte)[..., None, None] * table)
    chosen = np.take_along_axis(
        distance(scales.astype(int)), codes.reshape(8, 2, 32, 1).astype(int), axis=-1
    )
    nearest = distance(scales.astype(int)).min(axis=-1)
    np.testing.assert_allclose(chosen[..., 0], nearest, rtol=1e-5, atol=1e-6 * size)
    largest = abs(parts).max(axis=-1) / table[-1]
    first = abs(largest[..., None] - scales_by_hand(np.arange(248))).argmin(axis=-1)
    errors = [
        np.sum(distance(np.clip(first + offset, 0, 247)).min(axis=-1) ** 2, axis=-1)
        for offset in levels.tried
    ]
    np.testing.assert_allclose(np.sum(nearest**2, axis=-1), np.min(errors, axis=0), rtol=1e-4)


@pytest.mark.parametrize("bits", LEVELS)
def test_normal_values_lose_what_the_levels_promise(bits):
    """In dB: 2 bits -9.4, 3 bits -15.2, 4 bits -21.2 at blocks of 64, of at most 6.02 a bit."""
    x = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    side = layered(bits)
    planes = jax.jit(lambda x: side.join(side.terms(side.quantize(x))))(x)
    error = 10 * np.log10(np.mean((np.asarray(planes) - x) ** 2))
    assert error < {2: -9.3, 3: -15.1, 4: -21.1}[bits]


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-38, 3e38, np.inf, -np.inf, np.nan])
def test_whatever_is_written_reads_as_a_number(value):
    x = jnp.full((1, 64), value, jnp.float32)
    for levels in (*LEVELS.values(), EVEN):
        codes, scales = quantize(x, levels, 64)
        assert int(scales.max()) <= 247
        assert int(codes.max()) < levels.count


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_golden_bytes(bits, head_dim):
    """What is stored is a promise to every cache ever written, and to every other reader."""
    golden = np.load(GOLDEN)
    at = lambda name: golden[f"{name}_{bits}_{head_dim}"]
    x = jnp.array(golden[f"x_{head_dim}"])
    side = dataclasses.replace(layered(bits), rotate=False)
    rows = jax.jit(side.quantize)(x)
    for key, leaf in rows.items():
        np.testing.assert_array_equal(leaf, at(key), err_msg=key)
    near = jax.jit(side.refine)(x, rows)
    for key, leaf in near.items():
        np.testing.assert_array_equal(leaf, at(f"near_{key}"), err_msg=key)
    read = jax.jit(
        lambda rows, near: (side.join(side.terms(rows)), side.join(side.refinement(near)))
    )
    values, refinement = map(np.asarray, read(rows, near))
    np.testing.assert_array_equal(values, at("values"))
    np.testing.assert_array_equal(values + refinement, at("refined"))
