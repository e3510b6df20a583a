"""A `Llama` from a `Source`: one tensor at a time goes from disk to the devices.

Matrices are stored as `--weights` says, norms and biases in float32.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from deltakv_jax.linear import Matrix, Stack
from deltakv_jax.model import Llama
from deltakv_jax.parallel.placement import put
from deltakv_jax.parallel.sharding import check_split, role_spec
from deltakv_jax.weights.filling import fill
from deltakv_jax.weights.roles import layer_shapes, model_shapes
from deltakv_jax.weights.source import Source, Tensor
from deltakv_jax.weights.stacking import stack_layers
from deltakv_jax.weights.storage import Choice, cast, choose, stored_values


def assemble(source: Source, weights: str | None = None, mesh: Mesh | None = None) -> Llama:
    """Loads a model.

    Args:
      source: the checkpoint.
      weights: how matrices are stored, a key of `storage.WEIGHTS`: "f32", "bf16", "f16"; "q8_0"
        and "q4_0", quantised where the file has another type; "native", as in the file, where
        block types that cannot stay packed become floats. None for "native" where the file has
        block types, else float32 on a CPU and the file's own type on an accelerator.
      mesh: the devices that share the model; None for the default device alone.

    Raises:
      UserError: where a tensor is missing, left over, of the wrong shape, not finite or out of
        the range of its type, `weights` is unknown, or the model cannot be split over the mesh.
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
    if mesh is not None:
        split = (*layers["output"], *layers["down"])
        check_split(config, math.lcm(*(choice(tensor).multiple for tensor in split)), mesh.shape)
    model = jax.eval_shape(lambda: Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    for role, tensors in once.items():
        setattr(model, role, _single(role, tensors[0], choice, mesh))
    for role, tensors in layers.items():
        setattr(model, role, _stacked(role, tensors, choice, mesh))
    return model


def _single(role: str, tensor: Tensor, choice: Choice, mesh: Mesh | None) -> Matrix | nnx.Param:
    if len(tensor.shape) == 1:
        return nnx.Param(put(mesh, role_spec(role, 1), _vectors([tensor])[0]))
    return Matrix(fill(role, [tensor], choice(tensor), (), mesh))


def _stacked(
    role: str, tensors: Sequence[Tensor], choice: Choice, mesh: Mesh | None
) -> Stack | nnx.Param:
    if len(tensors[0].shape) == 1:
        return nnx.Param(put(mesh, role_spec(role, 2), _vectors(tensors)))
    shape = () if mesh is None else mesh.shape.items()
    stores = [choice(tensor) for tensor in tensors]
    stacking = stack_layers(role, stores, tensors[0].shape, dict(shape))
    stacks = [
        fill(role, [tensors[layer] for layer in layers], store, (len(layers),), mesh)
        for store, layers in zip(stacking.stores, stacking.layers, strict=True)
    ]
    return Stack(stacks, stacking.layout)


def _vectors(tensors: Sequence[Tensor]) -> np.ndarray:
    """Norms or biases, float32 [l, …]."""
    float32 = np.dtype(np.float32)
    return np.stack([cast(t.name, stored_values(t), float32) for t in tensors])
