"""Which layers of a role are stacked together: those of one kind, as many as a kernel can read.

Kernels count in 32 bits in arrays of certain sizes (`lowering.addressable`), which is too few for
some of them. Where a leaf of a stack would be one of these on its device, the stack is cut.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deltakv_jax.parallel.sharding import parts
from deltakv_jax.weights.roles import Shape
from deltakv_jax.weights.storage import Storage
from deltakv_pallas.lowering import addressable


class Stacking(NamedTuple):
    """The stacks of a role.

    Attributes:
      stores: what each is stored as.
      layers: those of each, in order.
    """

    stores: list[Storage]
    layers: list[list[int]]

    @property
    def layout(self) -> list[tuple[int, int]] | None:
        """Stack and row of each layer, as `Stack` takes them."""
        if len(self.layers) == 1:
            return None
        rows = enumerate(self.layers)
        where = {layer: (kind, row) for kind, held in rows for row, layer in enumerate(held)}
        return [where[layer] for layer in range(len(where))]


def stack_layers(
    role: str, stores: Sequence[Storage], shape: Shape, mesh: Mapping[str, int]
) -> Stacking:
    """How the layers of a role are stacked.

    Args:
      role: that they play.
      stores: what each is stored as.
      shape: of each matrix.
      mesh: the size of each axis of the mesh that shares them.
    """
    stacking = Stacking([], [])
    for store in dict.fromkeys(stores):
        held = [layer for layer, one in enumerate(stores) if one == store]
        most = _most(store, shape, parts(role, mesh), len(held))
        for start in range(0, len(held), most):
            stacking.stores.append(store)
            stacking.layers.append(held[start : start + most])
    return stacking


def _most(store: Storage, shape: Shape, devices: int, layers: int) -> int:
    """Layers of a stack: all, or equal parts of which each can be read; one can always be."""
    rows, values = shape
    leaves = [
        (rows * math.prod(leaf.shape) // devices, np.dtype(leaf.dtype).itemsize)
        for leaf in store.leaves(values).values()
    ]
    readable = lambda layers: all(addressable(layers * size, bytes_) for size, bytes_ in leaves)
    sizes = (-(-layers // stacks) for stacks in range(1, layers))
    return next(filter(readable, sizes), 1)
