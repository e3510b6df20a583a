"""The transform along head_dim, against the matrix it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.codec import hadamard

rotate = jax.jit(hadamard.rotate)
RNG = np.random.default_rng(0)


def matrix(head_dim: int, size: int) -> np.ndarray:
    """Sylvester's construction, block-diagonal."""
    block = np.ones((1, 1))
    while len(block) < size:
        block = np.block([[block, block], [block, -block]])
    return np.kron(np.eye(head_dim // size), block / np.sqrt(size))


@pytest.mark.parametrize(
    ("head_dim", "size"), [(32, 32), (64, 64), (80, 16), (96, 32), (128, 128), (7, 1)]
)
def test_it_is_block_diagonal_orthonormal_and_its_own_inverse(head_dim, size):
    x = RNG.standard_normal((3, 5, head_dim)).astype(np.float32)
    y = rotate(jnp.array(x))
    np.testing.assert_allclose(y, x @ matrix(head_dim, size), atol=1e-5)
    np.testing.assert_allclose(rotate(y), x, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_an_outlier_is_spread_evenly():
    outlier = jnp.zeros(64).at[37].set(8.0)
    np.testing.assert_array_equal(abs(rotate(outlier)), np.ones(64))


def test_bits_do_not_depend_on_what_else_is_transformed():
    x = jnp.array(RNG.standard_normal((33, 32)).astype(np.float32))
    np.testing.assert_array_equal(rotate(x)[7], rotate(x[7]))
