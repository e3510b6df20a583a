"""Random weights and caches made where they are to lie: 40 GB never pass through the host."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.linear import PackedMatrix

PARTS = 128
"""In which an array is drawn, at most: the numbers of a generator take more room than a byte."""


def random_key(seed: int) -> Array:
    """A key of the generator that is fastest on a GPU."""
    return jax.random.key(seed, impl="rbg")


def random_matrix(name: str, *lead: int, values: int, seed: int = 0) -> PackedMatrix:
    """A packed matrix [m, n], or a stack [l, m, n] of them, with values of about 1 / sqrt(n)."""
    rows = MATRICES[name].leaves(values).items()
    keys = jax.random.split(random_key(seed), len(rows))
    leaves = {
        leaf: random_array(key, jax.ShapeDtypeStruct((*lead, *row.shape), row.dtype), values**-0.5)
        for key, (leaf, row) in zip(keys, rows, strict=True)
    }
    return PackedMatrix(name, leaves)


def random_array(key: Array, shape: jax.ShapeDtypeStruct, size: float) -> Array:
    """Integers of all bits, or floats from 0 to `size`."""
    return _drawn(key, tuple(shape.shape), jnp.dtype(shape.dtype), size)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _drawn(key: Array, shape: tuple[int, ...], dtype: jnp.dtype, size: float) -> Array:
    first, *rest = shape
    parts = next(count for count in range(min(first, PARTS), 0, -1) if first % count == 0)

    def part(key: Array) -> Array:
        drawn = (first // parts, *rest)
        if jnp.issubdtype(dtype, jnp.floating):
            return (size * jax.random.uniform(key, drawn, jnp.float32)).astype(dtype)
        bits = jax.random.bits(key, drawn, f"uint{8 * dtype.itemsize}")
        return jax.lax.bitcast_convert_type(bits, dtype)

    return jax.lax.map(part, jax.random.split(key, parts)).reshape(shape)
