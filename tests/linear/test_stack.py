import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.linear import Stack


def weights(*shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


@pytest.mark.parametrize("layer", [0, 2])
def test_product_takes_the_layers_own_weights(layer):
    stack, x = weights(3, 4, 5), weights(2, 7, 5)
    got = jax.jit(Stack([stack]).product)(x, jnp.int32(layer))
    want = np.asarray(x) @ np.asarray(stack)[layer].T
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_kinds_are_picked_layer_by_layer():
    exact, rounded = weights(2, 4, 5), weights(1, 4, 5, dtype=jnp.bfloat16)
    mixed = Stack([exact, rounded], layout=[(0, 1), (1, 0), (0, 0)])
    x = weights(7, 5)
    product = jax.jit(lambda stack, layer: stack.product(x, layer))
    for layer, weight in enumerate([exact[1], rounded[0], exact[0]]):
        inputs, rows = np.asarray(x).astype(weight.dtype), np.asarray(weight)
        expected = inputs.astype(np.float32) @ rows.astype(np.float32).T
        np.testing.assert_allclose(product(mixed, layer), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_weights_are_summed_in_float32(dtype):
    ones = Stack([jnp.ones((1, 1, 4096), dtype)])
    got = ones.product(jnp.ones((1, 4096)) + 2.0**-7, 0)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [[4096 + 32]])


def test_one_program_serves_all_layers():
    traces = 0

    @jax.jit
    def product(stack, x, layer):
        nonlocal traces
        traces += 1
        return stack.product(x, layer)

    for layer in range(3):
        product(Stack([weights(3, 4, 5)]), weights(1, 5), layer)
    assert traces == 1
