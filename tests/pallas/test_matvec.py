"""The matvec kernel in interpret mode against float64 products of the same codes, row by row.

One program serves all batches and layers of a shape; sizes are ragged: rows that no tile divides,
blocks that no chunk divides.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.codec.matrix import Blocks
from deltakv_jax.errors import UserError
from deltakv_pallas import matvec_tuning
from deltakv_pallas.cases import matvec_case
from deltakv_pallas.lowering import TARGETS
from deltakv_pallas.matvec import _cut, _width, matvec, timed_here
from deltakv_pallas.matvec_program import rows_of
from deltakv_pallas.matvec_tuning import Tuning
from deltakv_pallas.words import _GATHER

FORMATS = [name for name, format_ in MATRICES.items() if isinstance(format_, Blocks)]
M, N, LAYERS = 75, 2816, 2
"""88 blocks, which are read in chunks of 32 that overlap."""
TUNING = Tuning(warp=32, warps=1, bytes=8, passes=2, batch=1, programs=1)
ERROR = 1e-4


def blocks_of(name: str) -> Blocks:
    format_ = MATRICES[name]
    assert isinstance(format_, Blocks)
    return format_


@functools.cache
def random_leaves(name: str, m: int = M, n: int = N, layers: int = LAYERS) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
        if dtype.kind == "f":
            return jnp.asarray(rng.normal(0, 0.01, (layers, m, *shape)), dtype)
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return jnp.asarray(rng.integers(low, high + 1, (layers, m, *shape)), dtype)

    leaves = MATRICES[name].leaves(n).items()
    return {key: draw(row.shape, np.dtype(row.dtype)) for key, row in leaves}


def inputs(rows: int, n: int = N) -> jax.Array:
    """Of many orders of magnitude, with a block of zeros and a value far above the rest."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows, n)) * np.exp(rng.standard_normal((rows, n)))
    x[0, 32:64] = 0
    x[-1, 0] = 3000
    return jnp.asarray(x, jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def values_of(name: str, leaves: dict[str, jax.Array], layer: int) -> jax.Array:
    return MATRICES[name].dequantize({key: leaf[layer] for key, leaf in leaves.items()})


def exact(name: str, x: jax.Array, layer: int) -> np.ndarray:
    weights = values_of(name, random_leaves(name), layer)
    return np.asarray(x, np.float64) @ np.asarray(weights, np.float64).T


def row_error(got: jax.Array, want: np.ndarray) -> float:
    """The largest relative error of any one output row."""
    error = np.linalg.norm(np.asarray(got) - want, axis=-1) / np.linalg.norm(want, axis=-1)
    return float(np.max(error))


@functools.cache
def interpreted(*names: str, tuning: Tuning = TUNING):
    """(leaves of each kind, x, kind, row) -> product, compiled."""
    formats = [blocks_of(name) for name in names]

    def product(leaves, x, kind, row):
        kinds = list(zip(formats, leaves, strict=True))
        return matvec(kinds, x, kind, row, interpret=True, tuning=tuning)

    return jax.jit(product)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_in_every_row(name: str):
    x, product = inputs(2), interpreted(name)
    for layer in range(LAYERS):
        got = product([random_leaves(name)], x, 0, layer)
        assert row_error(got, exact(name, x, layer)) < ERROR
        assert row_error(got, exact(name, x, 1 - layer)) > 0.5  # it sees another layer
        np.testing.assert_array_equal(got, product([random_leaves(name)], x, 0, layer))


@pytest.mark.parametrize("leaf", ["codes1", "high", "steps"])
def test_the_comparison_sees_every_leaf(leaf: str):
    x, leaves = inputs(2), dict(random_leaves("q6_k"))
    leaves[leaf] = leaves[leaf].at[:, 7, 1].set(-leaves[leaf][:, 7, 1] - 1)  # one position of a row
    got, want = interpreted("q6_k")([leaves], x, 0, 0), exact("q6_k", x, 0)
    wrong = np.abs(np.asarray(got) - want) > 1e-3 * np.abs(want)
    np.testing.assert_array_equal(np.argwhere(wrong.any(axis=0)), [[7]])


def test_several_vectors_to_a_program_and_one_of_padding():
    x, tuning = jnp.concatenate([inputs(2), jnp.ones((1, N))]), dataclasses.replace(TUNING, batch=2)
    got = interpreted("q8_0", tuning=tuning)([random_leaves("q8_0")], x, 0, 1)
    assert row_error(got, exact("q8_0", x, 1)) < ERROR


def test_layers_of_several_kinds():
    names = ("q8_0", "q4_0")
    x, leaves = inputs(1), [random_leaves(name) for name in names]
    product = interpreted(*names)
    for kind, row in ((0, 1), (1, 0)):
        got = product(leaves, x, jnp.int32(kind), jnp.int32(row))
        assert row_error(got, exact(names[kind], x, row)) < ERROR


@pytest.mark.parametrize(("m", "n"), [(1, 32), (17, 96)])
def test_small_matrices(m: int, n: int):
    leaves, x = random_leaves("q4_0", m, n, 1), inputs(2, n)
    got = interpreted("q4_0", tuning=Tuning(passes=4))([leaves], x, 0, 0)
    weights = np.asarray(values_of("q4_0", leaves, 0), np.float64)
    assert (
        row_error(got, np.asarray(x, np.float64) @ weights.T) < 10 * ERROR
    )  # few values, one of them far above the rest


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("m", "n"), [(301, 512), (1024, 4096), (96, 11008)])
@pytest.mark.parametrize("passes", [1, 4])
def test_every_format_in_every_shape(name: str, m: int, n: int, passes: int):
    leaves, x = random_leaves(name, m, n, 1), inputs(5, n)
    got = interpreted(name, tuning=Tuning(warp=32, passes=passes, programs=1))([leaves], x, 0, 0)
    weights = np.asarray(values_of(name, leaves, 0), np.float64)
    assert row_error(got, np.asarray(x, np.float64) @ weights.T) < ERROR


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_on_a_gpu(name: str, rows: int):
    """The same, compiled for the GPU that is here, and the same bits as interpreted."""
    x, format_ = inputs(rows), blocks_of(name)
    product = jax.jit(lambda leaves, x, row: matvec([(format_, leaves)], x, 0, row))
    got = product(random_leaves(name), x, 1)
    assert row_error(got, exact(name, x, 1)) < ERROR
    np.testing.assert_array_equal(got, product(random_leaves(name), x, 1))


@pytest.mark.gpu
def test_several_kinds_on_a_gpu():
    names = ("q4_k", "q6_k")
    kinds = [(blocks_of(name), random_leaves(name)) for name in names]
    product = jax.jit(lambda x, kind, row: matvec(kinds, x, kind, row))
    for kind, row in ((0, 1), (1, 0)):
        assert row_error(product(inputs(1), kind, row), exact(names[kind], inputs(1), row)) < ERROR


@pytest.mark.parametrize(("layers", "fits"), [(63, True), (65, False), (129, True)])
def test_a_stack_whose_offsets_overflow_is_refused(layers: int, fits: bool):
    """Codes of 2^25 bytes a layer; beyond 2^32 bytes offsets have 64 bits."""
    shape, format_ = jax.ShapeDtypeStruct, blocks_of("q4_0")
    rows = format_.leaves(8192).items()
    leaves = {key: shape((layers, 8192, *row.shape), row.dtype) for key, row in rows}
    trace = lambda: jax.eval_shape(
        lambda leaves, x: matvec([(format_, leaves)], x, 0, 0), leaves, shape((1, 8192), "float32")
    )
    if fits:
        trace()
    else:
        with pytest.raises(UserError, match="at most 2147483648 numbers"):
            trace()


@pytest.mark.parametrize("target", TARGETS)
def test_it_lowers_for_a_gpu_that_is_not_at_hand(target: str):
    case = matvec_case("q6_k", 8192, 28672)
    kernel = case.lower(TARGETS[target])
    made_by_nvidia = TARGETS[target].platform == "cuda"
    assert ("dp4a" in kernel.ir) == made_by_nvidia
    assert ("v_dot4_i32_i8" in kernel.ir) != made_by_nvidia
    assert kernel.grid[0] > 100


@pytest.mark.parametrize(
    ("blocks", "width"),
    [(256, 256), (896, 256), (448, 256), (344, 128), (224, 128), (40, 8), (1, 1)],
)
def test_chunks_of_a_row_waste_little(blocks: int, width: int):
    assert _width(blocks, 256) == width


@pytest.mark.parametrize(
    ("rows", "vectors", "passes"), [(1024, 1, 1), (2048, 1, 2), (4096, 1, 4), (28672, 2, 2)]
)
def test_few_rows_and_several_vectors_get_fewer_passes(rows: int, vectors: int, passes: int):
    tuning = Tuning(warp=32, passes=4, programs=512)
    assert _cut(tuning, rows, (vectors, 8192), None).passes == passes


def test_the_last_program_stays_inside_of_the_matrix():
    """On a GPU it would write elsewhere; interpretation lets that pass."""
    cut = _cut(TUNING, M, (1, N), None)
    last = jnp.int32(-(-M // cut.tile) - 1)
    rows = jnp.concatenate(rows_of(cut, last))
    assert M % cut.tile
    np.testing.assert_array_equal(rows, np.arange(M - cut.tile, M))


def test_the_assembly_transposes_bytes():
    """Run by hand: it is the one thing that interpretation leaves out."""
    rows = np.arange(16, dtype=np.uint8).reshape(4, 4)
    registers = {f"${4 + i}": row.tobytes() for i, row in enumerate(rows)}
    for line in _GATHER.splitlines():
        if line.startswith("prmt.b32"):
            to, a, b, picked = line.removeprefix("prmt.b32 ").rstrip(";").split(", ")
            both = registers[a] + registers[b]
            registers[to] = bytes(both[int(digit)] for digit in reversed(picked[2:]))
    got = np.array([list(registers[f"${i}"]) for i in range(4)])
    np.testing.assert_array_equal(got, rows.T)


def test_a_kernel_is_taken_unasked_where_it_was_timed(monkeypatch):
    formats = [blocks_of("q4_0"), blocks_of("q6_k")]
    assert not timed_here(formats, M, N)
    row = Tuning(device="cpu", format="q4_0", timed=True)
    monkeypatch.setattr(matvec_tuning, "MATVEC", (*matvec_tuning.MATVEC, row))
    assert timed_here(formats[:1], M, N)
    assert not timed_here(formats, M, N)
