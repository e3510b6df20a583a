import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.linear import Matrix, PackedMatrix, Stack, packed

M, N = 301, 512  # tiles and steps overlap


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


def exact(name: str, leaves: dict[str, jax.Array], x: jax.Array) -> np.ndarray:
    """The product in float64."""
    values = MATRICES[name].dequantize(leaves)
    return np.asarray(x, np.float64) @ np.asarray(values, np.float64).T


def assert_close(got, expected):
    """To float32 rounding of a sum, row by row."""
    error = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < 1e-6


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("rows", [1, 3, packed._MANY_ROWS])
def test_product(name: str, rows: int):
    leaves, x = random_leaves(name, M), inputs(rows)
    got = jax.jit(Matrix.product)(Matrix(PackedMatrix(name, leaves)), x)
    assert_close(got, exact(name, leaves, x))


@pytest.mark.parametrize("rows", [2, 20])
def test_many_tiles(rows: int, monkeypatch):
    monkeypatch.setattr(packed, "_TILE", 50 * N)
    monkeypatch.setattr(packed, "_TILE_OF_CODES", 50 * N)
    monkeypatch.setattr(packed, "_STEP", 7)
    leaves, x = random_leaves("q4_k", M), inputs(rows)
    got = Matrix(PackedMatrix("q4_k", leaves)).product(x)
    assert_close(got, exact("q4_k", leaves, x))


@pytest.mark.parametrize("m", [1, 3])
def test_small_matrices(m: int):
    leaves, x = random_leaves("q4_0", m, n=32), inputs(9, 32)
    for rows in (1, 9):
        got = Matrix(PackedMatrix("q4_0", leaves)).product(x[:rows])
        assert_close(got, exact("q4_0", leaves, x[:rows]))


@pytest.mark.parametrize("name", MATRICES)
def test_rows(name: str):
    leaves = random_leaves(name, M)
    ids = jnp.array([[3, 300, 3], [0, 7, 8]])
    got = Matrix(PackedMatrix(name, leaves)).rows(ids)
    np.testing.assert_array_equal(got, MATRICES[name].dequantize(leaves)[ids])


def test_layers_of_several_kinds():
    dense = jnp.asarray(np.random.default_rng(2).standard_normal((1, M, N)), jnp.float32)
    leaves, x = random_leaves("q6_k", 2, M), inputs(1)
    stack = Stack([PackedMatrix("q6_k", leaves), dense], layout=[(0, 1), (1, 0), (0, 0)])
    product = jax.jit(lambda stack, layer: stack.product(x, layer))
    layer = lambda row: exact("q6_k", {key: leaf[row] for key, leaf in leaves.items()}, x)
    expected = [layer(1), np.asarray(x, np.float64) @ np.asarray(dense[0], np.float64).T, layer(0)]
    for number, one in enumerate(expected):
        assert_close(product(stack, jnp.int32(number)), one)


@pytest.mark.parametrize("name", ["q4_0", "q5_k", "q6_k", "bf16"])
def test_a_split_of_the_rows_splits_every_leaf(name: str):
    leaves, x = random_leaves(name, M), inputs(1)
    part = {key: leaf[100:200] for key, leaf in leaves.items()}
    whole = Matrix(PackedMatrix(name, leaves)).product(x)
    np.testing.assert_allclose(
        Matrix(PackedMatrix(name, part)).product(x), whole[:, 100:200], rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("name", ["q4_0", "q5_k", "q6_k", "bf16"])
def test_a_split_of_the_blocks_splits_every_leaf(name: str):
    leaves, x = random_leaves(name, M), inputs(1)
    halves = [
        {key: jnp.split(leaf, 2, axis=-1)[half] for key, leaf in leaves.items()} for half in (0, 1)
    ]
    parts = [
        Matrix(PackedMatrix(name, half)).product(x_half)
        for half, x_half in zip(halves, jnp.split(x, 2, axis=-1), strict=True)
    ]
    assert_close(parts[0] + parts[1], exact(name, leaves, x))


@pytest.mark.parametrize("rows", [1, 4, 64])
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
