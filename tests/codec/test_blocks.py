"""q8_0 and q4_0: llama.cpp's bytes, and the error that rounding to the nearest code allows."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltakv_jax.codec import blocks

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "blocks.npz")
QUANTIZE = {"q8_0": blocks.quantize_q8_0, "q4_0": blocks.quantize_q4_0}
DEQUANTIZE = {"q8_0": blocks.dequantize_q8_0, "q4_0": blocks.dequantize_q4_0}
CODE_TYPE = {"q8_0": np.int8, "q4_0": np.uint16}
COMPILED = {name: jax.jit(quantize) for name, quantize in QUANTIZE.items()}
RESTORED = {name: jax.jit(dequantize) for name, dequantize in DEQUANTIZE.items()}


def golden(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, bytes of 64 values] and scales [rows, 2] of the golden bytes."""
    stored = GOLDEN[name]
    scales = stored[..., :2].copy().view(np.float16)[..., 0]
    return stored[..., 2:].reshape(len(stored), -1).view(CODE_TYPE[name]), scales


@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("name", QUANTIZE)
def test_golden_bytes(name, compiled):
    """Code for code, ties and near-ties included, in whatever program."""
    quantize = COMPILED[name] if compiled else QUANTIZE[name]
    codes, scales = quantize(jnp.array(GOLDEN["x"]))
    want_codes, want_scales = golden(name)
    np.testing.assert_array_equal(np.asarray(scales).view(np.uint16), want_scales.view(np.uint16))
    normal = abs(GOLDEN["x"]).max(axis=-1) < 1e29  # beyond, gguf multiplies infinities
    np.testing.assert_array_equal(codes[normal], want_codes[normal])


@pytest.mark.parametrize("name", QUANTIZE)
def test_codes_do_not_depend_on_the_program_around_them(name):
    """A subtraction before, a product after: nothing that a compiler may fuse changes a code."""

    @jax.jit
    def around(x, y):
        codes, scales = QUANTIZE[name](x - y)
        return codes, DEQUANTIZE[name](codes, scales) * 3 + y

    x = jnp.array(GOLDEN["x"][:150])
    codes, _ = around(x, jnp.zeros_like(x))
    np.testing.assert_array_equal(codes, golden(name)[0][:150])


@pytest.mark.parametrize("name", DEQUANTIZE)
def test_reconstruction_of_the_golden_bytes(name):
    codes, scales = golden(name)
    finite = np.isfinite(scales).all(axis=-1)
    if name == "q4_0":
        planes = codes.view(np.uint8).reshape(-1, 2, 16)
        whole = np.concatenate([planes & 15, planes >> 4], axis=-1).astype(np.float32) - 8
    else:
        whole = codes.reshape(-1, 2, 32).astype(np.float32)
    with np.errstate(invalid="ignore"):
        want = (whole.reshape(-1, 2, 32) * scales[..., None].astype(np.float32)).reshape(-1, 64)
    got = RESTORED[name](codes, scales)
    np.testing.assert_array_equal(np.asarray(got)[finite], want[finite])


@pytest.mark.parametrize("name", QUANTIZE)
@given(st.integers(0, 2**32 - 1), st.floats(-20, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_error_is_at_most_half_a_step(name, seed, decade):
    """Besides half a step: float16's rounding of the step, and q4_0's missing code 16."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (16, 64)).astype(np.float32) * np.float32(10.0**decade)
    codes, scales = COMPILED[name](x)
    stored = np.asarray(scales, np.float64).repeat(32, -1)
    error = abs(np.asarray(RESTORED[name](codes, scales), np.float64) - x)
    signed = x.reshape(16, 2, 32)
    largest = np.take_along_axis(signed, abs(signed).argmax(-1, keepdims=True), -1)
    step = (largest / {"q8_0": 127, "q4_0": -8}[name]).repeat(32, -1).reshape(16, 64)
    step = abs(step) if name == "q8_0" else step
    missing = np.maximum(x / step - 7.5, 0) if name == "q4_0" else 0
    rounding = abs(x / step).round() * abs(stored - step)
    assert (error <= (0.5 + missing) * abs(step) + rounding + 1e-6 * abs(x)).all()


@pytest.mark.parametrize("name", QUANTIZE)
@given(st.lists(st.floats(-6e4, 6e4, width=32), min_size=64, max_size=64))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_whatever_is_finite_stays_finite(name, values):
    assert np.isfinite(RESTORED[name](*COMPILED[name](np.array([values], np.float32)))).all()
