import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention.plain import attend_plain
from deltakv_jax.attention.rope import RopeTables


def unrotated(b: int, t: int, d: int) -> RopeTables:
    """Tables that turn nothing."""
    shape = (b, t, d // 2)
    return RopeTables(
        jnp.zeros((b, t), jnp.int32), jnp.ones(shape), jnp.zeros(shape), jnp.zeros(shape[-1:])
    )


def values(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_token_attends_to_itself_and_what_came_before(kv_heads):
    b, t, h, d = 2, 5, 4, 8
    q, k, v = values((b, t, h, d), (b, t, kv_heads, d), (b, t, kv_heads, d))
    got = np.asarray(jax.jit(attend_plain)(0, q, k, v, unrotated(b, t, d))[0])
    for row, token, head in np.ndindex(b, t, h):
        keys, held = (x[row, : token + 1, head // (h // kv_heads)] for x in (k, v))
        weights = np.exp(keys @ q[row, token, head] / np.sqrt(d))
        want = weights @ held / weights.sum()
        np.testing.assert_allclose(got[row, token, head], want, atol=1e-5)
