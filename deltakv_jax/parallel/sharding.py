"""Where each part of a model and of a cache lies on a mesh: one table from meanings to mesh axes.

A mesh has the axes `data`, over sequences, and `tensor`, over heads, the hidden size of SwiGLU and
the vocabulary. What is not split lies on every device. All leaves of a packed matrix are split
alike: rows at the axis of rows, and values of a row, in whole blocks, at the last axis.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from deltakv_jax.cache import KVCache
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.linear import PackedMatrix
from deltakv_jax.model import Llama

AnyMesh = Mesh | AbstractMesh

DATA, TENSOR = "data", "tensor"

MESH_AXES: dict[str, str | None] = {
    "batch": DATA,
    "vocab": TENSOR,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "ffn": TENSOR,
    "layers": None,
    "width": None,
    "head_dim": None,
    "rows": None,
    "numbers": None,
}
"""The mesh axis over which an axis of this meaning is split."""

MODEL_AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("vocab", "width"),
    "attention_norm": ("layers", "width"),
    "query": ("layers", "heads", "width"),
    "key": ("layers", "kv_heads", "width"),
    "value": ("layers", "kv_heads", "width"),
    "output": ("layers", "width", "heads"),
    "query_bias": ("layers", "heads"),
    "key_bias": ("layers", "kv_heads"),
    "value_bias": ("layers", "kv_heads"),
    "query_norm": ("layers", "head_dim"),
    "key_norm": ("layers", "head_dim"),
    "ffn_norm": ("layers", "width"),
    "gate": ("layers", "ffn", "width"),
    "up": ("layers", "ffn", "width"),
    "down": ("layers", "width", "ffn"),
    "final_norm": ("width",),
    "head": ("vocab", "width"),
}
"""What the axes of each role of a `Llama` mean, as they would be if it were dense."""

CACHE_AXES = ("layers", "batch", "kv_heads", "rows", "numbers")

BATCH = PartitionSpec(MESH_AXES["batch"])
"""Of an array whose first axis is that of the sequences."""

WHOLE = PartitionSpec()
"""Of an array that lies whole on every device."""


def role_spec(role: str, ndim: int) -> PartitionSpec:
    """The spec of a leaf of one role.

    Args:
      role: an attribute of `Llama`.
      ndim: axes of the leaf. Where a packed row has several, the last one counts its blocks.
    """
    *lead, last = (MESH_AXES[axis] for axis in MODEL_AXES[role])
    return PartitionSpec(*lead, *[None] * (ndim - len(lead) - 1), last)


def parts(role: str, shape: Mapping[str, int]) -> int:
    """Devices of a mesh of this shape among which a leaf of a role is split."""
    axes = [MESH_AXES[axis] for axis in MODEL_AXES[role]]
    return math.prod(shape.get(axis, 1) for axis in axes if axis is not None)


def model_specs(model: Llama) -> Llama:
    """The same tree with the spec of each leaf; also of a model of shapes only."""
    spec = lambda path, leaf: role_spec(path[0].name, leaf.ndim)
    return jax.tree_util.tree_map_with_path(spec, model)


def cache_specs(cache: KVCache) -> KVCache:
    """The same tree with the spec of each leaf; also of a cache of shapes only."""
    stored = PartitionSpec(*(MESH_AXES[axis] for axis in CACHE_AXES))
    return jax.tree.map(lambda leaf: BATCH if leaf.ndim == 1 else stored, cache)


def shardings(mesh: AnyMesh, specs: Any) -> Any:
    """The tree of specs as shardings on this mesh."""
    is_spec = lambda leaf: isinstance(leaf, PartitionSpec)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)


def check_mesh(model: Llama, shape: Mapping[str, int]) -> None:
    """Checks that a model, of arrays or of shapes only, can be split over a mesh of this shape.

    Raises:
      UserError: as `check_split`.
    """
    kinds = (*model.output.kinds, *model.down.kinds)
    check_split(model.config, math.lcm(*map(_multiple, kinds)), shape)


def check_batch(mesh: AnyMesh | None, batch: int) -> None:
    """Raises UserError where the axis `data` of a mesh does not divide a batch of sequences."""
    data = 1 if mesh is None else mesh.shape[DATA]
    if batch % data:
        fits = [n for n in range(1, batch + 1) if not batch % n]
        raise UserError(f"{DATA}={data} does not divide a batch of {batch}; {_listed(DATA, fits)}")


def check_split(config: LlamaConfig, multiple: int, shape: Mapping[str, int]) -> None:
    """Checks that a model of this config can be split over the axis `tensor` of a mesh.

    Args:
      config: its sizes.
      multiple: values in a row of `output` or `down` that are stored together.
      shape: the size of each mesh axis.

    Raises:
      UserError: names what does not divide, and the sizes that would fit.
    """
    tensor = shape.get(TENSOR, 1)
    together = f"blocks of {multiple} values" if multiple > 1 else "values"
    parts = {
        "kv heads": config.kv_heads,
        "tokens of the vocabulary": config.vocab_size,
        "hidden values of SwiGLU": config.ffn,
        f"{together} in a row of `down`": config.ffn // multiple,
        f"{together} in a row of `output`": config.heads * config.head_dim // multiple,
    }
    for what, size in parts.items():
        if size % tensor:
            most = min(parts.values())
            fits = [n for n in range(1, most + 1) if not any(one % n for one in parts.values())]
            raise UserError(
                f"{TENSOR}={tensor} does not divide the {size} {what}; {_listed(TENSOR, fits)}"
            )


def _multiple(kind: nnx.Param | PackedMatrix) -> int:
    return kind.format.multiple if isinstance(kind, PackedMatrix) else 1


def _listed(axis: str, fits: list[int]) -> str:
    *others, last = map(str, fits)
    return f"{axis}={', '.join(others)} or {last} would" if others else f"{axis}={last} would"
