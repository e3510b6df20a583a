"""Models of shapes alone: a `ShapeDtypeStruct` where `weights.assemble` would put an array.

Of a file only the headers are read. What is checked with the values (a head that repeats the
embedding it is tied to, tensors left over) shows when the model is loaded.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx

from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.linear import Matrix, PackedMatrix, Stack
from deltakv_jax.model import Llama
from deltakv_jax.planning.presets import PRESETS
from deltakv_jax.weights import demo_folder
from deltakv_jax.weights.checkpoint import Checkpoint
from deltakv_jax.weights.load import GGUF, HUB, open_model
from deltakv_jax.weights.roles import layer_shapes, model_shapes
from deltakv_jax.weights.source import Source, Tensor
from deltakv_jax.weights.stacking import stack_layers
from deltakv_jax.weights.storage import Choice, Storage, choose

_DENSE = {
    jnp.dtype(jnp.float32): "f32",
    jnp.dtype(jnp.bfloat16): "bf16",
    jnp.dtype(jnp.float16): "f16",
}
_FLOATS = {"f32", "f64", "bf16", "f16"}

FindTensor = Callable[[str, int | None], Tensor]
"""Gives the tensor of a role, of one layer for roles that each layer has."""


class Planned(NamedTuple):
    """A model without its weights.

    Attributes:
      name: of the preset, or of the model in its file.
      config: its sizes.
      model: its leaves are `ShapeDtypeStruct`.
    """

    name: str
    config: LlamaConfig
    model: Llama


def plan_model(
    name: str, weights: str | None, *, on_cpu: bool, mesh: Mapping[str, int] = {}
) -> Planned:
    """The shapes of a model.

    Args:
      name: a key of `PRESETS`, "demo", or the path of a folder or a GGUF file.
      weights: as for `load_model`; None for what suits the model and the device. Presets are
        published in bf16.
      on_cpu: whether it is to run on a CPU, of which that default depends.
      mesh: the size of each axis of the mesh that is to share the model.

    Raises:
      UserError: where there is no such model, it is damaged or not supported, or is not stored as
        `weights` says.
    """
    if name in PRESETS:
        config = PRESETS[name]
        return Planned(name, config, _assembled(config, _published(config), weights, on_cpu, mesh))
    opened = _open(name)
    if isinstance(opened, Checkpoint):
        return Planned(opened.name, opened.config, opened.shapes(weights))
    model = _assembled(opened.config, opened.tensor, weights, on_cpu, mesh)
    return Planned(opened.name, opened.config, model)


def _open(name: str) -> Source | Checkpoint:
    path = demo_folder() if name == "demo" else Path(name)
    if name.startswith(HUB) or not path.exists():
        raise UserError(
            f"there is no model {name!r} here; known are {', '.join(PRESETS)} and demo; or give a "
            f"Hugging Face folder, a converted model or a {GGUF} file"
        )
    return open_model(path)


def _published(config: LlamaConfig) -> FindTensor:
    """Tensors as a preset's files have them."""
    shapes = model_shapes(config) | layer_shapes(config)

    def unread() -> NoReturn:
        raise TypeError("a preset has no values")

    return lambda role, layer: Tensor(role, "bf16", shapes[role], unread, unread)


def _assembled(
    config: LlamaConfig,
    tensor: FindTensor,
    weights: str | None,
    on_cpu: bool,
    mesh: Mapping[str, int],
) -> Llama:
    """What `weights.assemble` makes of these tensors, in shapes."""
    once = {role: [tensor(role, None)] for role in model_shapes(config)}
    layers = {
        role: [tensor(role, layer) for layer in range(config.layers)]
        for role in layer_shapes(config)
    }
    tensors = [one for role in (*once.values(), *layers.values()) for one in role]
    choice = _choose(weights, [one for one in tensors if len(one.shape) == 2], on_cpu)
    model = jax.eval_shape(lambda: Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    for role, (one,) in once.items():
        if len(one.shape) == 2:
            setattr(model, role, Matrix(_empty(one, choice(one))))
    for role, of_role in layers.items():
        if len(of_role[0].shape) == 2:
            setattr(model, role, _stack(role, of_role, choice, mesh))
    return model


def _choose(weights: str | None, matrices: Sequence[Tensor], on_cpu: bool) -> Choice:
    """As `storage.choose` on the device that is meant, which need not be the one that is here."""
    kinds = {matrix.kind for matrix in matrices}
    if weights is None and not on_cpu:
        weights = "f32" if len(kinds) > 1 and kinds <= _FLOATS else "native"
    choice = choose(weights, matrices)
    if on_cpu or weights != "native":
        return choice
    # block types that cannot stay packed become bf16 on a GPU
    kept = _FLOATS | MATRICES.keys()
    return lambda one: choice(one if one.kind in kept else dataclasses.replace(one, kind="bf16"))


def _stack(role: str, tensors: Sequence[Tensor], choice: Choice, mesh: Mapping[str, int]) -> Stack:
    stores = [choice(tensor) for tensor in tensors]
    stacking = stack_layers(role, stores, tensors[0].shape, mesh)
    stacks = [
        _empty(tensors[layers[0]], store, len(layers))
        for store, layers in zip(stacking.stores, stacking.layers, strict=True)
    ]
    return Stack(stacks, stacking.layout)


def _empty(tensor: Tensor, store: Storage, *lead: int) -> jax.Array | PackedMatrix:
    """A matrix of this shape, or a stack of them, as `store` keeps it."""
    rows, values = tensor.shape
    if values % store.multiple:
        raise UserError(
            f"the tensor {tensor.name} has rows of {values} values, which are stored in multiples "
            f"of {store.multiple}"
        )
    leaves = store.leaves(values).items()
    make = lambda: store.wrap(
        {name: jnp.zeros((*lead, rows, *row.shape), row.dtype) for name, row in leaves}
    )
    return jax.eval_shape(make)


def stored_as(model: Llama) -> list[str]:
    """What the matrices of a model are stored as, by name: "f32", "q4_0"."""
    parts = [getattr(model, role) for role in model_shapes(model.config)]
    parts += [getattr(model, role) for role in layer_shapes(model.config)]
    matrices = [[part.kind] for part in parts if isinstance(part, Matrix)]
    matrices += [list(part.kinds) for part in parts if isinstance(part, Stack)]
    return sorted({_kind(kind) for of_role in matrices for kind in of_role})


def _kind(kind: nnx.Param | PackedMatrix) -> str:
    if isinstance(kind, PackedMatrix):
        return kind.format.name
    return _DENSE[jax.tree.leaves(kind)[0].dtype]
