from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.errors import UserError
from deltakv_jax.linear import Matrix, PackedMatrix, Stack, kernel, multiplied_by, packed
from deltakv_pallas import matvec_tuning
from deltakv_pallas.matvec_tuning import Tuning

M, N = 301, 512  # tiles and steps overlap
Leaves = Mapping[str, jax.typing.ArrayLike]

product = jax.jit(Matrix.product)


def random_leaves(name: str, *lead: int, n: int = N, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], dtype) -> jax.Array:
        dtype = np.dtype(dtype)
        if name == "bf16":
            bits = rng.standard_normal((*lead, *shape), np.float32).view(np.uint32) >> 16
            return jnp.asarray(bits.astype(np.uint16))
        if dtype.kind == "f":
            return jnp.asarray(rng.normal(0, 0.01, (*lead, *shape)), dtype)
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        return jnp.asarray(rng.integers(low, high + 1, (*lead, *shape)), dtype)

    return {key: draw(*row) for key, row in MATRICES[name].leaves(n).items()}


def inputs(rows: int, n: int = N) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).standard_normal((rows, n)), jnp.float32)


def exact(name: str, leaves: Leaves, x: jax.typing.ArrayLike) -> np.ndarray:
    """The product in float64."""
    return np.asarray(x, np.float64) @ np.asarray(values_of(name, leaves), np.float64).T


@partial(jax.jit, static_argnums=0)
def values_of(name: str, leaves: Leaves) -> jax.Array:
    return MATRICES[name].dequantize(leaves)


def assert_close(got, expected):
    """To float32 rounding of a sum, row by row."""
    error = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < 1e-6


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("rows", [3, packed._MANY_ROWS])
def test_product(name: str, rows: int):
    leaves, x = random_leaves(name, M), inputs(rows)
    got = product(Matrix(PackedMatrix(name, leaves)), x)
    assert_close(got, exact(name, leaves, x))


@pytest.mark.parametrize("rows", [2, 20])
def test_many_tiles(rows: int, monkeypatch):
    monkeypatch.setattr(packed, "_TILE", 50 * N)
    monkeypatch.setattr(packed, "_TILE_OF_CODES", 50 * N)
    monkeypatch.setattr(packed, "_STEP", 7)
    leaves, x = random_leaves("q4_k", M), inputs(rows)
    got = jax.jit(lambda matrix: matrix.product(x))(Matrix(PackedMatrix("q4_k", leaves)))
    assert_close(got, exact("q4_k", leaves, x))


@pytest.mark.parametrize("m", [1, 3])
def test_small_matrices(m: int):
    leaves, x = random_leaves("q4_0", m, n=32), inputs(9, 32)
    for rows in (1, 9):
        got = product(Matrix(PackedMatrix("q4_0", leaves)), x[:rows])
        assert_close(got, exact("q4_0", leaves, x[:rows]))


@pytest.mark.parametrize("name", MATRICES)
def test_rows(name: str):
    leaves = random_leaves(name, M)
    ids = jnp.array([[3, 300, 3], [0, 7, 8]])
    got = jax.jit(Matrix.rows)(Matrix(PackedMatrix(name, leaves)), ids)
    np.testing.assert_array_equal(got, np.asarray(values_of(name, leaves))[ids])


def test_layers_of_several_kinds():
    dense = jnp.asarray(np.random.default_rng(2).standard_normal((1, M, N)), jnp.float32)
    leaves, x = random_leaves("q6_k", 2, M), inputs(1)
    stack = Stack([PackedMatrix("q6_k", leaves), dense], layout=[(0, 1), (1, 0), (0, 0)])
    of_layer = jax.jit(lambda stack, layer: stack.product(x, layer))
    row = lambda number: {key: np.asarray(leaf)[number] for key, leaf in leaves.items()}
    layer = lambda number: exact("q6_k", row(number), x)
    expected = [layer(1), np.asarray(x, np.float64) @ np.asarray(dense[0], np.float64).T, layer(0)]
    for number, one in enumerate(expected):
        assert_close(of_layer(stack, jnp.int32(number)), one)


@pytest.mark.parametrize("name", ["q4_0", "q5_k", "q6_k", "bf16"])
def test_a_split_of_the_rows_splits_every_leaf(name: str):
    leaves, x = random_leaves(name, M), inputs(3)
    part = {key: jnp.asarray(np.asarray(leaf)[100:200]) for key, leaf in leaves.items()}
    whole = np.asarray(product(Matrix(PackedMatrix(name, leaves)), x))
    np.testing.assert_allclose(
        product(Matrix(PackedMatrix(name, part)), x), whole[:, 100:200], rtol=1e-4, atol=1e-3
    )


def half_of(x: jax.Array, half: int) -> jax.Array:
    """One half of the last axis, cut by numpy: JAX would compile a program for every shape."""
    return jnp.asarray(np.split(np.asarray(x), 2, axis=-1)[half])


@pytest.mark.parametrize("name", ["q4_0", "q5_k", "q6_k", "bf16"])
def test_a_split_of_the_blocks_splits_every_leaf(name: str):
    leaves, x = random_leaves(name, M), inputs(1)
    halves = [{key: half_of(leaf, half) for key, leaf in leaves.items()} for half in (0, 1)]
    parts = [
        product(Matrix(PackedMatrix(name, half)), x_half)
        for half, x_half in zip(halves, (half_of(x, 0), half_of(x, 1)), strict=True)
    ]
    assert_close(parts[0] + parts[1], exact(name, leaves, x))


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("name", ["q4_0", "q6_k", "bf16"])
def test_no_matrix_is_expanded_whole(name: str, rows: int):
    """What a program needs besides its arguments is less than half of the matrix in float32."""
    m, n = 16384, 1024
    shapes = {
        key: jax.ShapeDtypeStruct((2, m, *row.shape), row.dtype)
        for key, row in MATRICES[name].leaves(n).items()
    }
    stack = jax.eval_shape(lambda leaves: Stack([PackedMatrix(name, leaves)]), shapes)
    x, layer = jax.ShapeDtypeStruct((rows, n), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    program = jax.jit(Stack.product).lower(stack, x, layer).compile()
    memory = program.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * m * n / 2


def test_a_packed_matrix_is_an_argument_of_a_program():
    traces = 0

    @jax.jit
    def product(matrix: Matrix, x: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return matrix.product(x)

    first, second = (Matrix(PackedMatrix("q8_0", random_leaves("q8_0", 4, seed=s))) for s in (0, 1))
    assert not np.allclose(product(first, inputs(1)), product(second, inputs(1)))
    assert traces == 1
    assert len(jax.tree.leaves(first)) == 2


def test_the_kernel_is_another_way_to_the_same_product():
    """Asked for by name: over layers of several kinds, and for a single matrix."""
    names, x = ("q4_0", "q8_0"), inputs(2)
    leaves = {name: random_leaves(name, 24) for name in names}
    kinds = [PackedMatrix(name, leaves[name]).stacked() for name in names]
    stack = multiplied_by(Stack(kinds, layout=[(1, 0), (0, 0)]), "pallas-interpret")
    product = jax.jit(lambda x, layer: stack.product(x, layer))
    close = lambda got, name: np.testing.assert_allclose(
        got, exact(name, leaves[name], x), rtol=1e-3, atol=1e-3
    )
    for layer, name in enumerate(reversed(names)):
        close(product(x, layer), name)
    single = multiplied_by(Matrix(PackedMatrix("q4_0", leaves["q4_0"])), "pallas-interpret")
    close(single.product(x), "q4_0")


def test_what_the_kernel_does_not_read_is_refused_by_name():
    bits = Matrix(PackedMatrix("bf16", random_leaves("bf16", 4)))
    with pytest.raises(UserError, match="multiplies blocks"):
        multiplied_by(bits, "pallas-interpret").product(inputs(1))
    dense = Matrix(jnp.ones((4, N)))
    np.testing.assert_array_equal(multiplied_by(dense, "pallas").product(jnp.ones((1, N))), N)


@pytest.mark.parametrize(("rows", "taken"), [(1, True), (16, True), (17, False)])
def test_the_kernel_is_taken_for_few_rows_where_it_was_timed(rows, taken, monkeypatch):
    asked = []
    monkeypatch.setattr(kernel, "matvec", lambda kinds, x, *_, **__: asked.append(1) or x[:, :M])
    matrix = Matrix(PackedMatrix("q4_0", random_leaves("q4_0", M)))
    matrix.product(inputs(rows))
    assert not asked
    monkeypatch.setattr(matvec_tuning, "MATVEC", (Tuning(timed=True),))
    matrix.product(inputs(rows))
    assert bool(asked) == taken
