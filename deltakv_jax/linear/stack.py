"""The weights of one role (say, the query projection) in every layer of a model.

A file may hold them in several types, layer by layer, so they are stacked per *kind*; the layer's
index, which may be traced, picks kind and row. A scan over layers then compiles one body whose
size grows with the number of kinds and never with depth.
"""

import functools
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from deltakv_jax.linear.dense import dense_product
from deltakv_jax.linear.kernel import Implementation, kernel_product, suits
from deltakv_jax.linear.packed import PackedMatrix, packed_product, packed_rows
from deltakv_jax.typed import typed

Kind = nnx.Param | PackedMatrix
"""A dense array or a packed one."""

Model = TypeVar("Model", bound=nnx.Module)


class Stack(nnx.Module):
    """One matrix W per layer, y = x @ W.T, as Hugging Face has them.

    Attributes:
      kinds: one stack per kind of weight, dense or packed, [layers of this kind, out, in].
      layout: static; kind and row of each layer, None where one kind holds all layers in order.
      implementation: static; who multiplies, see `kernel`.
    """

    def __init__(
        self,
        kinds: Sequence[jax.Array | PackedMatrix],
        layout: Sequence[tuple[int, int]] | None = None,
    ):
        """Takes one kind's stack in order of the layers, or several and their `layout`."""
        self.kinds = nnx.List([_kind(kind) for kind in kinds])
        self.layout = None if layout is None else tuple(layout)
        self.implementation: Implementation | None = None

    @typed
    def product(
        self, x: Float[Array, "*lead n"], layer: int | Int[Array, ""]
    ) -> Float32[Array, "*lead m"]:
        """Returns x @ W.T of one layer, summed in float32; dense W multiply in their own dtype."""
        if self.layout is None:
            return _product(list(self.kinds), x, 0, layer, self.implementation)
        kinds, rows = jnp.asarray(self.layout, jnp.int32).T
        return _product(list(self.kinds), x, kinds[layer], rows[layer], self.implementation)


class Matrix(nnx.Module):
    """A single matrix W: an embedding, read by rows, or a head, y = x @ W.T, or both.

    Attributes:
      kind: the weights, dense or packed, [out, in].
      implementation: static; who multiplies, see `kernel`.
    """

    def __init__(self, kind: jax.Array | PackedMatrix):
        """Takes the weights."""
        self.kind = _kind(kind)
        self.implementation: Implementation | None = None

    @typed
    def product(self, x: Float[Array, "*lead n"]) -> Float32[Array, "*lead m"]:
        """Returns x @ W.T, summed in float32; a dense W multiplies in its own dtype."""
        kind = self.kind
        stack = kind.stacked() if isinstance(kind, PackedMatrix) else nnx.Param(kind[...][None])
        return _product([stack], x, 0, 0, self.implementation)

    @typed
    def rows(self, ids: Int[Array, "*lead"]) -> Float32[Array, "*lead n"]:
        """The rows of these numbers."""
        if isinstance(self.kind, PackedMatrix):
            return packed_rows(self.kind, ids)
        return self.kind[...][ids].astype(jnp.float32)


def _kind(weights: jax.Array | PackedMatrix) -> Kind:
    return weights if isinstance(weights, PackedMatrix) else nnx.Param(weights)


def multiplied_by(model: Model, implementation: Implementation | None) -> Model:
    """The same weights, in whose products all packed matrices are multiplied as asked for."""
    copy = jax.tree.map(lambda leaf: leaf, model)
    for _, part in nnx.iter_modules(copy):
        if isinstance(part, (Stack, Matrix)):
            part.implementation = implementation
    return copy


def _product(
    kinds: Sequence[Kind],
    x: Array,
    kind: jax.typing.ArrayLike,
    row: jax.typing.ArrayLike,
    implementation: Implementation | None,
) -> Array:
    flat = x.reshape(-1, x.shape[-1])
    if suits(kinds, flat, implementation):
        y = kernel_product(kinds, flat, kind, row, implementation)
    else:
        branches = [functools.partial(_plain_product, one) for one in kinds]
        y = jax.lax.switch(kind, branches, flat, row)
    return y.reshape(*x.shape[:-1], -1)


def _plain_product(kind: Kind, x: Array, row: jax.typing.ArrayLike) -> Array:
    if isinstance(kind, PackedMatrix):
        return packed_product(kind, x, row)
    return dense_product(kind[...], x, row)
