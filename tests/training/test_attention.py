import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention.plain import attend_plain
from deltakv_jax.attention.rope import RopeTables
from deltakv_jax.training.attention import BLOCK, attend_blocks


def inputs(t: int, h: int, kv_heads: int, d: int = 8) -> tuple:
    rng = np.random.default_rng(0)
    draw = lambda heads: jnp.asarray(rng.standard_normal((2, t, heads, d)), jnp.float32)
    angles = jnp.asarray(rng.uniform(0, 6, (2, t, d // 2)), jnp.float32)
    rope = RopeTables(jnp.zeros((2, t), jnp.int32), jnp.cos(angles), jnp.sin(angles), angles[0, 0])
    return draw(h), draw(kv_heads), draw(kv_heads), rope


plain, blocks = (jax.jit(attend, static_argnums=0) for attend in (attend_plain, attend_blocks))


@pytest.mark.parametrize(("t", "kv_heads"), [(1, 2), (BLOCK, 1), (2 * BLOCK + 3, 4)])
def test_blocks_are_plain_attention(t: int, kv_heads: int):
    q, k, v, rope = inputs(t, 4, kv_heads)
    got, expected = (attend(0, q, k, v, rope)[0] for attend in (blocks, plain))
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_so_are_their_gradients():
    *qkv, rope = inputs(BLOCK + 5, 4, 2)
    weight = jnp.asarray(np.random.default_rng(1).standard_normal(qkv[0].shape), jnp.float32)

    def gradients(attend):
        total = lambda q, k, v: jnp.vdot(weight, attend(0, q, k, v, rope)[0])
        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*qkv)

    for got, expected in zip(gradients(attend_blocks), gradients(attend_plain), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_scores_too_large_for_an_exponential():
    q, k, v, rope = inputs(BLOCK, 4, 1)
    got, expected = (attend(0, 1000 * q, k, v, rope)[0] for attend in (blocks, plain))
    np.testing.assert_allclose(got, expected, atol=1e-4)
