"""Matrices from a checkpoint to where they belong, so that nothing is there twice.

A stack is made empty and filled in place, chunk by chunk. On a mesh every device is given the rows
that it holds, or of every row the blocks that it holds: no device and no host ever has all of them.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deltakv_jax.codec.matrix import MatrixLeaves, RowLeaf
from deltakv_jax.linear import PackedMatrix
from deltakv_jax.parallel.collectives import spread
from deltakv_jax.parallel.placement import put_rows
from deltakv_jax.parallel.sharding import WHOLE, role_spec
from deltakv_jax.weights.source import Tensor
from deltakv_jax.weights.storage import Rows, Storage

_CHUNK = 1 << 22  # values that are converted at a time


def fill(
    role: str, tensors: Sequence[Tensor], store: Storage, lead: tuple[int, ...], mesh: Mesh | None
) -> jax.Array | PackedMatrix:
    """Reads matrices of one kind, one after the other.

    Args:
      role: that they play.
      tensors: all of one shape (m, n).
      store: what they become.
      lead: (layers,), or () for a single matrix.
      mesh: the devices that share them.

    Returns:
      The matrices, [*lead, m, …].

    Raises:
      UserError: where a value is not finite or does not fit.
    """
    m, n = tensors[0].shape
    stack = _Matrices(role, store.leaves(n), (*lead, m), mesh)
    for layer, tensor in enumerate(tensors):
        stack.write(store.open(tensor), layer, n)
    return store.wrap(stack.leaves)


class _Matrices:
    """The leaves of matrices [*lead, m, …], empty where they belong, to be filled in place."""

    def __init__(
        self, role: str, rows: Mapping[str, RowLeaf], lead: tuple[int, ...], mesh: Mesh | None
    ):
        spec = lambda row: role_spec(role, len(lead) + len(row.shape))
        self._specs = {name: spec(row) for name, row in rows.items()}
        self._rows, self._lead, self._mesh = rows, lead, mesh
        self.leaves = {
            name: _zeros(mesh, self._specs[name], (*lead, *row.shape), row.dtype)
            for name, row in rows.items()
        }

    def write(self, opened: Rows, layer: int, n: int) -> None:
        """Writes one matrix, as many rows of each device's part at a time."""
        *layers, m = self._lead
        split = next(iter(self._specs.values()))[len(layers)]
        parts = 1 if self._mesh is None or split is None else self._mesh.shape[split]
        for start, size in _spans(m // parts, _CHUNK // (n * parts)):
            part = functools.cache(functools.partial(_part, opened, m // parts, start, size))
            at = (*(layer for _ in layers), start)
            for name, spec in self._specs.items():
                shape = (parts * size, *self._rows[name].shape)
                of_rows = PartitionSpec(*spec[len(layers) :])
                take = lambda i, part=part, name=name: part(i)[name]
                chunk = put_rows(self._mesh, of_rows, shape, take)
                leaf = self.leaves[name]
                self.leaves[name] = _write(leaf, chunk, at, mesh=self._mesh, spec=spec)
        jax.block_until_ready(self.leaves)


def _part(opened: Rows, held: int, start: int, size: int, part: int) -> MatrixLeaves:
    """The rows from `start` on of a part that holds so many."""
    first = part * held + start
    return opened(slice(first, first + size))


def _spans(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """Start and size of equally many rows, for one program; the last may overlap the one before."""
    count = -(-rows // max(1, most))
    size = -(-rows // count)
    for i in range(count):
        yield min(i * size, rows - size), size


def _zeros(mesh: Mesh | None, spec: PartitionSpec, shape: tuple[int, ...], dtype) -> jax.Array:
    if mesh is None:
        return jnp.zeros(shape, dtype)
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=NamedSharding(mesh, spec))()


@functools.partial(jax.jit, static_argnames=("mesh", "spec"), donate_argnums=0)
def _write(
    leaf: jax.Array,
    chunk: jax.Array,
    at: tuple[int, ...],
    *,
    mesh: Mesh | None,
    spec: PartitionSpec,
) -> jax.Array:
    """Writes a chunk at (layer, row of each part) or (row of each part), in place."""

    def write(leaf: jax.Array, chunk: jax.Array, at: tuple[jax.Array, ...]) -> jax.Array:
        chunk = chunk.reshape(*(1 for _ in at[:-1]), *chunk.shape)
        return jax.lax.dynamic_update_slice(leaf, chunk, (*at, *(0,) * (leaf.ndim - len(at))))

    rows = PartitionSpec(*spec[len(at) - 1 :])
    return spread(mesh, write, (spec, rows, WHOLE), spec)(leaf, chunk, at)
