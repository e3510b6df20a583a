"""Arrays from the host to a mesh, and back; every process has the same host arrays."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from deltakv_jax.cache import KVCache
from deltakv_jax.parallel.sharding import cache_specs, shardings


def put(mesh: Mesh | None, spec: PartitionSpec, x: np.ndarray | Array) -> Array:
    """An array of the host on a mesh, each device's part alone, or on the default device.

    Args:
      mesh: the devices, or None.
      spec: how it is split.
      x: values, or random keys.
    """
    if mesh is None:
        return jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(mesh, spec, jax.random.key_data(x)))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, NamedSharding(mesh, spec), host.__getitem__)


def put_rows(
    mesh: Mesh | None,
    spec: PartitionSpec,
    shape: tuple[int, ...],
    part: Callable[[int], np.ndarray],
) -> Array | np.ndarray:
    """An array of rows on a mesh, made of those parts alone that this process's devices hold.

    Args:
      mesh: the devices; None leaves the only part on the host.
      spec: how it is split.
      shape: of the whole.
      part: gives the rows of the i-th of equal parts, whole along the other axes.
    """
    if mesh is None:
        return part(0)
    where = NamedSharding(mesh, spec)
    size = where.shard_shape(shape)[0]

    def values(index: tuple[slice, ...] | None) -> np.ndarray:
        rows, *rest = index or (slice(None),)
        return part((rows.start or 0) // size)[(slice(None), *rest)]

    return jax.make_array_from_callback(shape, where, values)


def to_host(x: Array) -> np.ndarray:
    """All of an array, whichever process's devices its parts lie on."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def make_on(mesh: Mesh | None, make: Callable[..., KVCache], *arguments: KVCache) -> KVCache:
    """The cache that `make` returns, made where its parts belong: nowhere is it whole."""
    if mesh is None:
        return make(*arguments)
    where = shardings(mesh, cache_specs(jax.eval_shape(make, *arguments)))
    return jax.jit(make, out_shardings=where)(*arguments)
