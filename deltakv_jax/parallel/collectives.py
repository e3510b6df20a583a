"""What goes between the devices of a mesh, and a function run on each of them with its part.

Inside of `spread` a model meets at the places that `Collectives` names, and nowhere else: weights
and caches never move.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from deltakv_jax.linear import Matrix
from deltakv_jax.model import ONE_DEVICE, Collectives
from deltakv_jax.parallel.sharding import DATA, TENSOR, AnyMesh


def spread(mesh: AnyMesh | None, function: Callable, inputs: Any, outputs: Any) -> Callable:
    """`function` of a device's parts as a function of whole arrays; as it is without a mesh.

    Args:
      mesh: the devices, or None for a single one.
      function: takes and returns what one device has.
      inputs: the specs of its arguments, a tuple.
      outputs: the specs of its results. What lies whole on every device must come out the same
        there: nobody checks.
    """
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def collectives_on(mesh: AnyMesh | None) -> Collectives:
    """Where a model meets whose weights are split over the axis `tensor` of a mesh."""
    return ONE_DEVICE if mesh is None else _TENSOR_PARALLEL


def join_sequences(mesh: AnyMesh | None, x: Array) -> Array:
    """[b, …] of all sequences, of which each row of devices has some."""
    return x if mesh is None else jax.lax.all_gather(x, DATA, tiled=True)


def on_any_device(mesh: AnyMesh | None, flags: Bool[Array, " n"]) -> Bool[Array, " n"]:
    """Whether each flag is set on any device."""
    return flags if mesh is None else jax.lax.psum(flags.astype(jnp.int32), (DATA, TENSOR)) > 0


def speaks(mesh: Mesh) -> Bool[Array, ""]:
    """Whether this device is the one that talks to its process: the first of its devices."""
    processes = np.array([device.process_index for device in mesh.devices.flat])
    first = np.zeros(processes.shape, bool)
    first[np.unique(processes, return_index=True)[1]] = True
    at = jax.lax.axis_index(DATA), jax.lax.axis_index(TENSOR)
    return jnp.asarray(first.reshape(mesh.devices.shape))[at]


def _rows(matrix: Matrix, ids: Array) -> Array:
    """The rows of a matrix of which each device has as many: taken where they are, and summed."""
    held = jax.tree.leaves(matrix)[0].shape[0]
    at = ids - held * jax.lax.axis_index(TENSOR)
    here = (at >= 0) & (at < held)
    rows = matrix.rows(jnp.where(here, at, 0))
    return _reduce(jnp.where(here[..., None], rows, 0))


def _reduce(x: Array) -> Array:
    return jax.lax.psum(x, TENSOR)


def _gather(x: Array) -> Array:
    return jax.lax.all_gather(x, TENSOR, axis=x.ndim - 1, tiled=True)


_TENSOR_PARALLEL = Collectives(rows=_rows, reduce=_reduce, gather=_gather)
