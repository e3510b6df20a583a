"""A Hugging Face folder as a `Source`: one table of its tensors' names, read and written by it.

Every tensor of a file is used exactly once, and every weight of the model is set.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from deltakv_jax.errors import UserError
from deltakv_jax.model import Llama
from deltakv_jax.weights.configuration import config_from_fields
from deltakv_jax.weights.fields import Fields
from deltakv_jax.weights.roles import layer_shapes, model_shapes
from deltakv_jax.weights.source import Tensor
from deltakv_jax.weights.tensors import SINGLE, Entry, find_tensors, read_tensor
from deltakv_jax.weights.tokenizers import Tokenizer
from deltakv_jax.weights.tokenizers.saving import copy_files

# The attributes of `Llama` and the tensors that fill them, "{}" being the number of a layer.
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "attention_norm": "model.layers.{}.input_layernorm.weight",
    "query": "model.layers.{}.self_attn.q_proj.weight",
    "key": "model.layers.{}.self_attn.k_proj.weight",
    "value": "model.layers.{}.self_attn.v_proj.weight",
    "output": "model.layers.{}.self_attn.o_proj.weight",
    "query_bias": "model.layers.{}.self_attn.q_proj.bias",
    "key_bias": "model.layers.{}.self_attn.k_proj.bias",
    "value_bias": "model.layers.{}.self_attn.v_proj.bias",
    "query_norm": "model.layers.{}.self_attn.q_norm.weight",
    "key_norm": "model.layers.{}.self_attn.k_norm.weight",
    "ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "gate": "model.layers.{}.mlp.gate_proj.weight",
    "up": "model.layers.{}.mlp.up_proj.weight",
    "down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}

# What older files hold besides: the RoPE frequencies, which follow from the config.
FREQUENCIES = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


class HuggingFaceSource:
    """A `Source`: a folder with config.json, tokenizer.json and safetensors.

    Attributes:
      name: of the model, for results.
      config: what config.json says.
    """

    def __init__(self, folder: Path, name: str | None = None):
        """Opens a folder, no values read; `name` is by default the folder's.

        Raises:
          UserError: where config.json or the weights are missing, damaged or not supported.
        """
        self.name = name or folder.resolve().name
        self.config = config_from_fields(Fields.read(folder / "config.json"))
        self._folder = folder
        self._entries = find_tensors(folder)
        self._left = set(self._entries)

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        """As `Source.tensor`."""
        shape = (model_shapes(self.config) | layer_shapes(self.config))[role]
        name = NAMES[role].format(layer)
        entry = self._entry(name, shape)
        read = functools.partial(read_tensor, name, entry)
        return Tensor(name, entry.kind, shape, read, functools.partial(_float32, read))

    def _entry(self, name: str, shape: tuple[int, ...]) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            lacks = f"{self._folder} lacks the tensor {name}"
            raise UserError(f"{lacks}, expected with shape {list(shape)}")
        if entry.shape != shape:
            got = list(entry.shape)
            raise UserError(f"{entry.path}: {name} has shape {got}, expected {list(shape)}")
        self._left.discard(name)
        return entry

    def check_all_used(self) -> None:
        """As `Source.check_all_used`; what some files repeat may be left over.

        That is the RoPE frequencies, and a tied head if it is the same as the embedding.
        """
        left = {name for name in self._left if not FREQUENCIES.fullmatch(name)}
        if self.config.tied and NAMES["head"] in left:
            left.remove(NAMES["head"])
            self._check_tied_head()
        if left:
            more = f" (nor have {len(left) - 1} others)" if len(left) > 1 else ""
            raise UserError(
                f"{self._folder}: the tensor {min(left)} has no place in the model{more}"
            )

    def _check_tied_head(self) -> None:
        head, embedding = (
            read_tensor(NAMES[role], self._entries[NAMES[role]]) for role in ("head", "embedding")
        )
        if not np.array_equal(head, embedding):
            path = self._entries[NAMES["head"]].path
            raise UserError(f"{path}: lm_head.weight is not the embedding that it is tied to")

    def tokenizer(self) -> Tokenizer:
        """As `Source.tokenizer`."""
        return Tokenizer.load(self._folder, limit=self.config.vocab_size)

    def save_tokenizer(self, folder: Path) -> None:
        """As `Source.save_tokenizer`."""
        copy_files(self._folder, folder)


def _float32(read: Callable[[], np.ndarray]) -> np.ndarray:
    with np.errstate(over="ignore"):  # a float64 beyond the range becomes infinity
        return read().astype(np.float32)


def save_weights(folder: Path, model: Llama, dtype: np.dtype) -> None:
    """Writes model.safetensors, every tensor in `dtype`.

    Raises:
      UserError: where matrices of the model are not dense, all layers in one array.
    """
    once, layers = model_shapes(model.config), layer_shapes(model.config)
    shapes = once | {role: (model.config.layers, *shape) for role, shape in layers.items()}
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        role = path[0].name
        if leaf.shape != shapes[role] or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(f"only dense weights are written as safetensors, {role} is packed")
        tensors |= _named(NAMES[role], np.asarray(leaf).astype(dtype))
    (folder / SINGLE).write_bytes(save(tensors, metadata={"format": "pt"}))


def _named(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of a leaf: one, or one per layer."""
    if "{}" not in name:
        return {name: values}
    return {name.format(layer): row for layer, row in enumerate(values)}
