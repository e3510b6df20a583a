"""Formats of matrices, against the `gguf` package."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.codec.matrix import MatrixLeaves

# In the float16 fields of a block, where they begin.
FACTORS = {"q4_0": (0,), "q8_0": (0,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}
SIZES = {"q4_0": (32, 18), "q8_0": (32, 34), "q4_k": (256, 144), "q5_k": (256, 176)} | {
    "q6_k": (256, 210)
}
N = 768


def random_rows(name: str, m: int, n: int = N, seed: int = 0) -> np.ndarray:
    """Random blocks, uint8 [m, bytes of a row], with factors of about 0.01 and of both signs."""
    rng = np.random.default_rng(seed)
    block, size = SIZES[name]
    raw = rng.integers(0, 256, (m, n // block, size), np.uint8)
    for at in FACTORS[name]:
        factors = rng.normal(0, 0.01, (*raw.shape[:2], 1)).astype(np.float16)
        raw[..., at : at + 2] = factors.view(np.uint8)
    return raw.reshape(m, -1)


def on_device(leaves: MatrixLeaves) -> dict[str, jax.Array]:
    return {name: jnp.asarray(leaf) for name, leaf in leaves.items()}


@pytest.mark.parametrize("name", FACTORS)
def test_blocks_have_the_values_that_gguf_says(name: str):
    raw, form = random_rows(name, 5), MATRICES[name]
    leaves = on_device(form.pack(raw))
    expected = dequantize(raw, Type[name.upper()])
    np.testing.assert_array_equal(form.dequantize(leaves), expected)
    # in one program XLA may fuse a product with the difference that follows
    near = 1e-7 * np.abs(expected).max()
    np.testing.assert_allclose(jax.jit(form.dequantize)(leaves), expected, rtol=0, atol=near)


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_values_are_quantized_as_gguf_does_it(name: str):
    values = np.random.default_rng(0).standard_normal((40, N), np.float32)
    values[3, :32] = 0
    got = MATRICES[name].quantize(values)
    expected = MATRICES[name].pack(quantize(values, Type[name.upper()]))
    for leaf in expected:
        np.testing.assert_array_equal(got[leaf], expected[leaf])


def test_a_block_of_q4_0_byte_for_byte():
    """Scale 2, then codes 0 and 15 in the first byte, 9 and 7 in the second, 8 elsewhere."""
    raw = np.array([[0x00, 0x40, 0xF0, 0x79, *[0x88] * 14]], np.uint8)
    values = np.zeros(32)
    values[[0, 16, 1, 17]] = -16, 14, 2, -2
    form = MATRICES["q4_0"]
    np.testing.assert_array_equal(form.dequantize(on_device(form.pack(raw)))[0], values)


def test_where_codes_lie():
    """Byte j of block b of a file's row lies at [j, b]: shards of rows or of blocks agree."""
    raw = random_rows("q4_0", 2)
    leaves = MATRICES["q4_0"].pack(raw)
    blocks = raw.reshape(2, -1, 18)
    np.testing.assert_array_equal(leaves["codes"][1, 5, 7], blocks[1, 7, 2 + 5])
    np.testing.assert_array_equal(leaves["scales"][1, 7:8].view(np.uint8), blocks[1, 7, :2])


@pytest.mark.parametrize(("name", "dtype"), [("bf16", ml_dtypes.bfloat16), ("f16", np.float16)])
def test_narrow_floats_are_rounded_once(name: str, dtype):
    values = np.random.default_rng(0).standard_normal((3, 5), np.float32)
    leaves = on_device(MATRICES[name].quantize(values))
    assert leaves["values"].dtype.itemsize == 2
    expected = values.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(MATRICES[name].dequantize(leaves), expected)


@pytest.mark.parametrize("name", MATRICES)
def test_leaves_are_as_described(name: str):
    form = MATRICES[name]
    rows = random_rows(name, 2) if name in FACTORS else np.ones((2, N), np.float32)
    leaves = form.pack(rows) if name in FACTORS else form.quantize(rows)
    described = form.leaves(N)
    assert leaves.keys() == described.keys()
    for key, row in described.items():
        assert (leaves[key].shape, leaves[key].dtype) == ((2, *row.shape), row.dtype)
    size = 8 * sum(leaf.nbytes for leaf in leaves.values())
    assert size / (2 * N) == form.bits_per_weight


def test_bits_per_weight():
    bits = {name: form.bits_per_weight for name, form in MATRICES.items()}
    small = {"q4_0": 4.5, "q4_k": 4.625, "q5_k": 5.625, "q6_k": 6.5625, "q8_0": 8.5}
    assert bits == small | {"bf16": 16, "f16": 16}


@pytest.mark.parametrize("name", MATRICES)
def test_parts_are_joined_as_they_were_split(name: str):
    form = MATRICES[name]
    x = np.arange(2 * N, dtype=np.float32).reshape(2, N)
    np.testing.assert_array_equal(jax.jit(lambda x: form.join(form.split(x)))(x), x)


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_factor_that_is_not_finite_is_seen(name: str, bad: float):
    raw, form = random_rows(name, 3), MATRICES[name]
    assert form.finite(form.pack(raw))
    block = raw.reshape(3, -1, SIZES[name][1])[1, 2]
    block[FACTORS[name][-1] :][:2] = np.array([bad], np.float16).view(np.uint8)
    assert not form.finite(form.pack(raw))


def test_a_narrow_float_that_is_not_finite_is_seen():
    form = MATRICES["bf16"]
    assert form.finite(form.quantize(np.ones((1, 2), np.float32)))
    assert not form.finite(form.quantize(np.array([[1, np.inf]], np.float32)))
