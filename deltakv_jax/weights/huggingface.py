"""The tensors of a Hugging Face Llama: one table of their names, read and written by it.

Every tensor of a file is used exactly once, and every weight of the model is set.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save

from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.model import Llama
from deltakv_jax.weights.tensors import SINGLE, Entry, find_tensors, read_tensor

# The attributes of `Llama` and the tensors that fill them, "{}" being the number of a layer.
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "query": "model.layers.{}.self_attn.q_proj.weight",
    "key": "model.layers.{}.self_attn.k_proj.weight",
    "value": "model.layers.{}.self_attn.v_proj.weight",
    "output": "model.layers.{}.self_attn.o_proj.weight",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}

# What older files hold besides: the RoPE frequencies, which follow from the config.
FREQUENCIES = "model.layers.{}.self_attn.rotary_emb.inv_freq"


def load_weights(folder: Path, config: LlamaConfig, dtype: np.dtype | None = None) -> Llama:
    """Reads a model from a folder.

    Args:
      folder: holds model.safetensors, or its shards and their index.
      config: what the model is.
      dtype: of the matrices; None for `native_dtype`. Norms are always float32.

    Raises:
      UserError: where a tensor is missing, left over, of the wrong shape or out of the range of
        `dtype`, or a file is damaged.
    """
    entries = find_tensors(folder)
    model = abstract_model(config, native_dtype(entries) if dtype is None else dtype)
    _check(folder, model, entries)
    read = lambda path, leaf: _read_leaf(_names(path, leaf), leaf, entries)
    return jax.tree_util.tree_map_with_path(read, model)


def abstract_model(config: LlamaConfig, dtype: np.dtype) -> Llama:
    """A model of shapes and dtypes, without values."""
    return jax.eval_shape(lambda: Llama(config, dtype=dtype, rngs=nnx.Rngs(0)))


def native_dtype(entries: Mapping[str, Entry]) -> np.dtype:
    """The 16-bit type that all matrices have, or float32; always float32 on a CPU.

    A CPU widens 16-bit weights anew in every product.
    """
    kinds = {entry.kind for entry in entries.values() if len(entry.shape) == 2}
    if jax.default_backend() == "cpu" or len(kinds) != 1:
        return jnp.dtype(jnp.float32)
    return jnp.dtype({"F16": jnp.float16, "BF16": jnp.bfloat16}.get(kinds.pop(), jnp.float32))


def save_weights(folder: Path, model: Llama, dtype: np.dtype) -> None:
    """Writes model.safetensors, every tensor in `dtype`."""
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        names = _names(path, leaf)
        values = np.asarray(leaf).astype(dtype)
        tensors |= zip(names, values.reshape(-1, *_shape(names, leaf)), strict=True)
    (folder / SINGLE).write_bytes(save(tensors, metadata={"format": "pt"}))


def _names(path: tuple, leaf: jax.Array | jax.ShapeDtypeStruct) -> list[str]:
    """The tensors that fill a leaf of the model: one, or one per layer."""
    name = NAMES[path[0].name]
    return [name.format(layer) for layer in range(leaf.shape[0])] if "{}" in name else [name]


def _shape(names: list[str], leaf: jax.Array | jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape of each of the tensors that fill a leaf."""
    return leaf.shape if names[0] in NAMES.values() else leaf.shape[1:]


def _check(folder: Path, model: Llama, entries: Mapping[str, Entry]) -> None:
    """Each weight has its tensor in its shape, and each tensor a weight."""
    left = dict(entries)
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        names = _names(path, leaf)
        for name in names:
            _check_shape(folder, name, left.pop(name, None), _shape(names, leaf))
    _drop_redundant(model.config, entries, left)
    if left:
        more = f" (nor have {len(left) - 1} others)" if len(left) > 1 else ""
        raise UserError(f"{folder}: the tensor {min(left)} has no place in the model{more}")


def _check_shape(folder: Path, name: str, entry: Entry | None, shape: tuple[int, ...]) -> None:
    if entry is None:
        raise UserError(f"{folder} lacks the tensor {name}, expected with shape {list(shape)}")
    if entry.shape != shape:
        got = list(entry.shape)
        raise UserError(f"{entry.path}: {name} has shape {got}, expected {list(shape)}")


def _drop_redundant(
    config: LlamaConfig, entries: Mapping[str, Entry], left: dict[str, Entry]
) -> None:
    """Takes out what some files repeat: the RoPE frequencies, and a tied head if it is the same."""
    for layer in range(config.layers):
        left.pop(FREQUENCIES.format(layer), None)
    if config.tied and NAMES["head"] in left:
        entry, embedding = left.pop(NAMES["head"]), entries[NAMES["embedding"]]
        head = read_tensor(NAMES["head"], entry)
        if not np.array_equal(head, read_tensor(NAMES["embedding"], embedding)):
            raise UserError(f"{entry.path}: lm_head.weight is not the embedding that it is tied to")


def _read_leaf(
    names: list[str], leaf: jax.ShapeDtypeStruct, entries: Mapping[str, Entry]
) -> jax.Array:
    values = np.empty((len(names), *_shape(names, leaf)), leaf.dtype)
    for row, name in zip(values, names, strict=True):
        row[...] = _cast(name, read_tensor(name, entries[name]), leaf.dtype)
    return jnp.asarray(values.reshape(leaf.shape))


def _cast(name: str, tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = tensor.astype(dtype)
    if not np.isfinite(cast).all():
        fault = f"does not fit {dtype}" if np.isfinite(tensor).all() else "holds NaN or infinity"
        raise UserError(f"the tensor {name} {fault}")
    return cast
