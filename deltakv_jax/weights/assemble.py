"""A `Llama` from a `Source`: one tensor at a time goes from disk to the device.

The stacks of all layers are made empty on the device and filled in place, chunk by chunk, so that
nothing is there twice. Matrices are stored as `--weights` says, norms and biases in float32.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deltakv_jax.linear import Matrix, PackedMatrix, Stack
from deltakv_jax.model import Llama
from deltakv_jax.weights.roles import layer_shapes, model_shapes
from deltakv_jax.weights.source import Source, Tensor
from deltakv_jax.weights.storage import Choice, Storage, cast, choose, stored_values


def assemble(source: Source, weights: str | None = None) -> Llama:
    """Loads a model.

    Args:
      source: the checkpoint.
      weights: how matrices are stored, a key of `storage.WEIGHTS`: "f32", "bf16", "f16"; "q8_0"
        and "q4_0", quantised where the file has another type; "native", as in the file, where
        block types that cannot stay packed become floats. None for "native" where the file has
        block types, else float32 on a CPU and the file's own type on an accelerator.

    Raises:
      UserError: where a tensor is missing, left over, of the wrong shape, not finite or out of
        the range of its type, or `weights` is unknown.
    """
    config = source.config
    once = {role: [source.tensor(role)] for role in model_shapes(config)}
    layers = {
        role: [source.tensor(role, layer) for layer in range(config.layers)]
        for role in layer_shapes(config)
    }
    source.check_all_used()
    tensors = [tensor for role in (*once.values(), *layers.values()) for tensor in role]
    choice = choose(weights, [tensor for tensor in tensors if len(tensor.shape) == 2])
    model = jax.eval_shape(lambda: Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    for role, tensors in once.items():
        setattr(model, role, _single(tensors[0], choice))
    for role, tensors in layers.items():
        setattr(model, role, _stacked(tensors, choice))
    return model


def _single(tensor: Tensor, choice: Choice) -> Matrix | nnx.Param:
    if len(tensor.shape) == 1:
        return nnx.Param(_vectors([tensor])[0])
    stack = _filled([tensor], choice(tensor))
    return Matrix(jax.tree.map(lambda leaf: leaf[0], stack))


def _stacked(tensors: Sequence[Tensor], choice: Choice) -> Stack | nnx.Param:
    if len(tensors[0].shape) == 1:
        return nnx.Param(_vectors(tensors))
    stores = [choice(tensor) for tensor in tensors]
    kinds = {
        store: [t for t, s in zip(tensors, stores, strict=True) if s == store] for store in stores
    }
    stacks = [_filled(of_kind, store) for store, of_kind in kinds.items()]
    if len(stacks) == 1:
        return Stack(stacks)
    number = {store: kind for kind, store in enumerate(kinds)}
    rows = [stores[:layer].count(store) for layer, store in enumerate(stores)]
    return Stack(stacks, [(number[store], row) for store, row in zip(stores, rows, strict=True)])


def _vectors(tensors: Sequence[Tensor]) -> jax.Array:
    """Norms or biases, float32 [l, …]."""
    float32 = np.dtype(np.float32)
    return jnp.asarray(np.stack([cast(t.name, stored_values(t), float32) for t in tensors]))


def _filled(tensors: Sequence[Tensor], store: Storage) -> jax.Array | PackedMatrix:
    """A stack of matrices of one kind, filled one after the other."""
    m, n = tensors[0].shape
    lead = (len(tensors), m)
    leaves = {
        name: jnp.zeros((*lead, *row.shape), row.dtype) for name, row in store.leaves(n).items()
    }
    for row, tensor in enumerate(tensors):
        for start, chunk in store.chunks(tensor):
            leaves = {name: _write(leaves[name], chunk[name], row, start) for name in leaves}
        jax.block_until_ready(leaves)
    return store.wrap(leaves)


@functools.partial(jax.jit, donate_argnums=0)
def _write(stack: jax.Array, rows: jax.Array, row: int, start: int) -> jax.Array:
    """Writes rows of the matrix `row` from `start` on, in place."""
    at = (row, start, *(0,) * (rows.ndim - 1))
    return jax.lax.dynamic_update_slice(stack, rows[None], at)
