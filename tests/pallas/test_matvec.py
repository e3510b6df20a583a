"""The matrix-vector kernel in interpret mode against float32, row by row, on the same codes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.codec.kquants import Q4_K
from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.codec.matrix import Q4_0, MatrixFormat, MatrixLeaves, Scaled
from deltakv_jax.errors import UserError
from deltakv_pallas.lowering import TARGETS, lower, triton_kernels
from deltakv_pallas.matvec import cut_for, matvec_pallas
from deltakv_pallas.matvec_cases import SHAPES, matvec_call, matvec_shapes
from deltakv_pallas.matvec_program import Cut
from deltakv_pallas.matvec_tuning import MatvecTuning, matvec_tuning

LAYERS, M, N = 3, 77, 768  # no powers of two: tiles of rows and chunks of blocks overlap
EXACT_ERROR, HALF_ERROR = 1e-6, 1e-3
CODES = MatvecTuning(rows=16, tiles=2, blocks=16, unroll=1, programs=6)
MATRIX_UNITS = MatvecTuning(rows=64, blocks=16, unroll=1, dot=True, programs=4)
PAIRS = dataclasses.replace(MATRIX_UNITS, matrix_units=False)
"""Of a device without matrix units."""


def random_leaves(format_: MatrixFormat, m: int = M, n: int = N) -> dict[str, jax.Array]:
    """Random codes and scales of all layers."""
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...], dtype) -> np.ndarray:
        shape = (LAYERS, m, *shape)
        if format_.name == "bf16":
            return (rng.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(dtype)
        if np.issubdtype(dtype, np.floating):
            return rng.normal(0, 0.01, shape).astype(dtype)
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)

    return {name: jnp.asarray(draw(*leaf)) for name, leaf in format_.leaves(n).items()}


def inputs(batch: int, n: int = N) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal((batch, n)), jnp.float32)


@functools.cache
def interpreted(format_: MatrixFormat, tuning: MatvecTuning):
    return jax.jit(functools.partial(matvec_pallas, format_, interpret=True, tuning=tuning))


def largest_error(format_: MatrixFormat, leaves, x, got, layer: int) -> float:
    """Of any row of x, relative, against the product with the expanded matrix."""
    matrix = format_.dequantize({name: leaf[layer] for name, leaf in leaves.items()})
    want = np.asarray(x, np.float64) @ np.asarray(matrix, np.float64).T
    error = np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)
    return float(np.max(error))


@pytest.mark.parametrize("name", MATRICES)
def test_codes_are_multiplied_exactly(name):
    format_, x = MATRICES[name], inputs(1)
    leaves, product = random_leaves(format_), interpreted(format_, CODES)
    for layer in (0, 2):
        got = product(leaves, x, jnp.int32(layer))
        assert largest_error(format_, leaves, x, got, layer) < EXACT_ERROR


def test_codes_are_multiplied_with_one_row_after_another():
    x, leaves = inputs(3), random_leaves(Q4_0)
    got = interpreted(Q4_0, CODES)(leaves, x, jnp.int32(1))
    assert largest_error(Q4_0, leaves, x, got, 1) < EXACT_ERROR


@pytest.mark.parametrize("name", MATRICES)
def test_expanded_weights_are_multiplied_in_half_precision(name):
    format_, x = MATRICES[name], inputs(8)
    leaves = random_leaves(format_)
    got = interpreted(format_, PAIRS)(leaves, x, jnp.int32(1))
    assert largest_error(format_, leaves, x, got, 1) < HALF_ERROR


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("shape", [(1, 256), (33, 3584), (300, 1792)])
@pytest.mark.parametrize("tuning", [CODES, MATRIX_UNITS, PAIRS], ids=["codes", "matrix", "pairs"])
def test_every_format_in_every_shape(name, batch, shape, tuning):
    format_, x = MATRICES[name], inputs(batch, shape[1])
    leaves = random_leaves(format_, *shape)
    got = interpreted(format_, tuning)(leaves, x, jnp.int32(1))
    bound = HALF_ERROR if cut_for(format_, shape[0], x.shape, tuning).dot else EXACT_ERROR
    assert largest_error(format_, leaves, x, got, 1) < bound


def test_one_row_as_the_table_has_it():
    x, leaves = inputs(1), random_leaves(Q4_0)
    got = interpreted(Q4_0, matvec_tuning("gfx906", "q4_0", 1))(leaves, x, jnp.int32(1))
    assert largest_error(Q4_0, leaves, x, got, 1) < EXACT_ERROR


@pytest.mark.parametrize("size", [1e-4, 1e6])
def test_rows_that_half_precision_does_not_hold(size):
    x = inputs(3) * jnp.array([[1], [size], [0]])
    leaves = random_leaves(Q4_0)
    got = interpreted(Q4_0, MATRIX_UNITS)(leaves, x, jnp.int32(0))
    assert largest_error(Q4_0, leaves, x[:2], got[:2], 0) < HALF_ERROR
    np.testing.assert_array_equal(got[2], 0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_on_a_gpu(name, batch):
    """Compiled for the GPU that is here, as its row of the table says."""
    format_, x = MATRICES[name], inputs(batch)
    leaves = random_leaves(format_)
    got = jax.jit(functools.partial(matvec_pallas, format_))(leaves, x, jnp.int32(1))
    assert largest_error(format_, leaves, x, got, 1) < HALF_ERROR


@pytest.mark.parametrize("tuning", [CODES, MATRIX_UNITS], ids=["codes", "matrix"])
def test_two_runs_give_equal_bits(tuning):
    x, leaves = inputs(3), random_leaves(Q4_0)
    first, second = (interpreted(Q4_0, tuning)(leaves, x, jnp.int32(1)) for _ in "ab")
    np.testing.assert_array_equal(first, second)


@dataclasses.dataclass(frozen=True)
class WithoutOffset(type(Q4_K)):
    def read(self, leaves: MatrixLeaves) -> tuple[Scaled, ...]:
        return tuple(scaled._replace(offset=None) for scaled in super().read(leaves))


@dataclasses.dataclass(frozen=True)
class NibblesSwapped(type(Q4_K)):
    def read(self, leaves: MatrixLeaves) -> tuple[Scaled, ...]:
        [scaled] = super().read(leaves)
        return (scaled._replace(codes=scaled.codes[::-1]),)


@pytest.mark.parametrize("fault", [WithoutOffset, NibblesSwapped])
def test_the_comparison_sees_a_fault_of_the_format(fault):
    x, leaves = inputs(1), random_leaves(Q4_K)
    got = interpreted(fault("q4_k"), CODES)(leaves, x, jnp.int32(1))
    assert largest_error(Q4_K, leaves, x, got, 1) > 0.1


def test_the_comparison_sees_another_layer():
    x, leaves = inputs(3), random_leaves(Q4_0)
    got = interpreted(Q4_0, CODES)(leaves, x, jnp.int32(1))
    assert largest_error(Q4_0, leaves, x, got, 2) > 0.5


@pytest.mark.parametrize("tuning", [CODES, MATRIX_UNITS], ids=["codes", "matrix"])
def test_the_comparison_sees_blocks_that_are_counted_twice(tuning, monkeypatch):
    monkeypatch.setattr(Cut, "counted", lambda cut, chunk, x: x)
    x, leaves = inputs(1), random_leaves(Q4_0)
    got = interpreted.__wrapped__(Q4_0, tuning)(leaves, x, jnp.int32(1))
    assert largest_error(Q4_0, leaves, x, got, 1) > 0.1


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["q4_0", "q6_k"])
def test_it_lowers_for_a_gpu_that_is_not_at_hand(target, name):
    m, n = SHAPES["llama3_70b_of_4_kv"]
    [kernel] = triton_kernels(lower(*matvec_call(name, m, n, 1), TARGETS[target]))
    tuning = matvec_tuning(TARGETS[target].device_kind, name, 1)
    assert kernel.warps == tuning.warps
    assert kernel.grid == (256 // 16, 256 // 64, 1)


def test_all_chunks_of_all_rows_are_read_and_splits_are_not_empty():
    for name, shape, batch in matvec_shapes():
        m, n = SHAPES[shape]
        cut = cut_for(MATRICES[name], m, (batch, n), matvec_tuning("gfx906", name, batch))
        assert cut.splits * cut.each >= cut.chunks > (cut.splits - 1) * cut.each
        assert cut.chunks * cut.blocks - cut.overlap == cut.width
        assert cut.overlap < cut.blocks


def test_a_small_matrix_is_not_for_a_matrix_unit():
    assert cut_for(Q4_0, 16, (1, 512), MATRIX_UNITS).dot
    assert not cut_for(Q4_0, 15, (1, 512), MATRIX_UNITS).dot
    assert not cut_for(Q4_0, 16, (1, 480), MATRIX_UNITS).dot


@pytest.mark.parametrize(("layers", "fits"), [(73, True), (80, False), (147, True)])
def test_a_stack_that_offsets_do_not_reach_is_refused(layers, fits):
    """Up to 2 GiB offsets fit into 32 bits; beyond 4 GiB Pallas computes them in 64."""
    function, (leaves, *rest) = matvec_call("q4_0", 7168, 8192, 1)
    widen = lambda leaf: jax.ShapeDtypeStruct((layers, *leaf.shape[1:]), leaf.dtype)
    call = lambda: jax.eval_shape(function, jax.tree.map(widen, leaves), *rest)
    if fits:
        assert call().shape == (1, 7168)
    else:
        with pytest.raises(UserError, match="codes has 2348810240"):
            call()


def test_the_most_special_row_is_taken():
    assert matvec_tuning("gfx906", "q4_0", 1).tiles == 4
    assert matvec_tuning("gfx906", "q6_k", 1).warps == 8
    assert matvec_tuning("gfx906", "q4_0", 3).batch == 4
    assert matvec_tuning("gfx906", "q4_0", 8).rows == 128
    assert matvec_tuning("a new GPU", "no such format", 8).device == ""
    assert matvec_tuning("a new GPU", "no such format", 8).dot
