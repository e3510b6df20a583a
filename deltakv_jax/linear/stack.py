"""The weights of one role (say, the query projection) in every layer of a model.

A file may hold them in several types, layer by layer, so they are stacked per *kind*; the layer's
index, which may be traced, picks kind and row. A scan over layers then compiles one body whose
size grows with the number of kinds and never with depth.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from deltakv_jax.linear.dense import dense_product
from deltakv_jax.linear.packed import PackedMatrix, packed_product, packed_rows
from deltakv_jax.typed import typed

Kind = nnx.Param | PackedMatrix
"""A dense array or a packed one."""


class Stack(nnx.Module):
    """One matrix W per layer, y = x @ W.T, as Hugging Face has them.

    Attributes:
      kinds: one stack per kind of weight, dense or packed, [layers of this kind, out, in].
      layout: static; kind and row of each layer, None where one kind holds all layers in order.
    """

    def __init__(
        self,
        kinds: Sequence[jax.Array | PackedMatrix],
        layout: Sequence[tuple[int, int]] | None = None,
    ):
        """Takes one kind's stack in order of the layers, or several and their `layout`."""
        self.kinds = nnx.List([_kind(kind) for kind in kinds])
        self.layout = None if layout is None else tuple(layout)

    @typed
    def product(
        self, x: Float[Array, "*lead n"], layer: int | Int[Array, ""]
    ) -> Float32[Array, "*lead m"]:
        """Returns x @ W.T of one layer, summed in float32; dense W multiply in their own dtype."""
        branches = [functools.partial(_product, kind) for kind in self.kinds]
        if self.layout is None:
            return branches[0](x, layer)
        kinds, rows = jnp.asarray(self.layout, jnp.int32).T
        return jax.lax.switch(kinds[layer], branches, x, rows[layer])


class Matrix(nnx.Module):
    """A single matrix W: an embedding, read by rows, or a head, y = x @ W.T, or both.

    Attributes:
      kind: the weights, dense or packed, [out, in].
    """

    def __init__(self, kind: jax.Array | PackedMatrix):
        """Takes the weights."""
        self.kind = _kind(kind)

    @typed
    def product(self, x: Float[Array, "*lead n"]) -> Float32[Array, "*lead m"]:
        """Returns x @ W.T, summed in float32; a dense W multiplies in its own dtype."""
        kind = self.kind
        stack = kind.stacked() if isinstance(kind, PackedMatrix) else nnx.Param(kind[...][None])
        return _product(stack, x, 0)

    @typed
    def rows(self, ids: Int[Array, "*lead"]) -> Float32[Array, "*lead n"]:
        """The rows of these numbers."""
        if isinstance(self.kind, PackedMatrix):
            return packed_rows(self.kind, ids)
        return self.kind[...][ids].astype(jnp.float32)


def _kind(weights: jax.Array | PackedMatrix) -> Kind:
    return weights if isinstance(weights, PackedMatrix) else nnx.Param(weights)


def _product(kind: Kind, x: jax.Array, row: jax.typing.ArrayLike) -> jax.Array:
    flat = x.reshape(-1, x.shape[-1])
    if isinstance(kind, PackedMatrix):
        y = packed_product(kind, flat, row)
    else:
        y = dense_product(kind[...], flat, row)
    return y.reshape(*x.shape[:-1], -1)
