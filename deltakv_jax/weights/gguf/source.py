"""A GGUF file as a source of weights: one table of its tensors' names.

GGUF stores the rows of a Llama's queries and keys so that RoPE rotates neighbours (2i with 2i + 1);
they are put back in halves (i with i + d/2) on reading, raw blocks too, since a row's blocks move
as one. Qwen's are stored in halves.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize

from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.weights.gguf.config import (
    ARCHITECTURES,
    architecture,
    config_from_metadata,
    linear_factor,
)
from deltakv_jax.weights.gguf.file import GGUFFile, open_file
from deltakv_jax.weights.roles import Shape, layer_shapes, model_shapes
from deltakv_jax.weights.source import Tensor
from deltakv_jax.weights.tokenizers import Tokenizer
from deltakv_jax.weights.tokenizers.gguf import tokenizer_from_gguf
from deltakv_jax.weights.tokenizers.saving import write_metadata

# The roles and the tensors that play them, "{}" being the number of a layer.
NAMES = {
    "embedding": "token_embd.weight",
    "attention_norm": "blk.{}.attn_norm.weight",
    "query": "blk.{}.attn_q.weight",
    "key": "blk.{}.attn_k.weight",
    "value": "blk.{}.attn_v.weight",
    "output": "blk.{}.attn_output.weight",
    "query_bias": "blk.{}.attn_q.bias",
    "key_bias": "blk.{}.attn_k.bias",
    "value_bias": "blk.{}.attn_v.bias",
    "query_norm": "blk.{}.attn_q_norm.weight",
    "key_norm": "blk.{}.attn_k_norm.weight",
    "ffn_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
}
ROPE_FACTORS = "rope_freqs.weight"

DENSE = {Type.F32: np.float32, Type.F16: np.float16, Type.BF16: ml_dtypes.bfloat16}
BLOCKS = (
    *(Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0),
    *(Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS),
)

_INTERLEAVED = ("query", "key")
_ROWS = 1024  # that are dequantised at a time: the package holds what it makes twice


class GGUFSource:
    """An open GGUF file.

    Attributes:
      name: of the model: the file's, without its ending.
      config: what the model is.
    """

    def __init__(self, file: GGUFFile):
        """Checks that the file has every tensor of the model that its metadata describes.

        Raises:
          UserError: where a tensor is missing, of the wrong shape or of a type that is not
            supported, or the metadata describe what is not supported.
        """
        self._file = file
        self._path = str(file.path)
        self.name = file.name
        tied = NAMES["head"] not in file.tensors
        config = config_from_metadata(self._path, file.metadata, tied)
        arch = architecture(self._path, file.metadata)
        self._interleaved = ARCHITECTURES[arch].interleaved
        self._check_tensors(config)
        self.config = self._with_rope_factors(config)

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        """The tensor of a role, of one layer for roles that each layer has."""
        shapes = model_shapes(self.config) if layer is None else layer_shapes(self.config)
        return self._tensor(NAMES[role].format(layer), role, shapes[role])

    def check_all_used(self) -> None:
        """Raises UserError where the file holds a tensor that has no place in the model."""
        used = {name for name, _, _ in _expected(self.config)} | {ROPE_FACTORS}
        left = sorted(set(self._file.tensors) - used)
        if left:
            more = f" (nor have {len(left) - 1} others)" if len(left) > 1 else ""
            path = self._file.path_of(left[0])
            raise UserError(f"{path}: the tensor {left[0]} has no place in the model{more}")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the metadata describe."""
        return tokenizer_from_gguf(
            self._file.metadata, source=self._path, limit=self.config.vocab_size
        )

    def save_tokenizer(self, folder: Path) -> None:
        """Writes what the metadata say of the tokenizer into `folder`."""
        write_metadata(self._file.metadata, folder)

    def _check_tensors(self, config: LlamaConfig) -> None:
        # A count of layers beyond that of the tensors is not believed: they are gone through.
        if config.layers > len(self._file.tensors):
            raise UserError(
                f"{self._path} has {len(self._file.tensors)} tensors, too few for {config.layers} "
                "layers"
            )
        for name, role, shape in _expected(config):
            self._tensor(name, role, shape)

    def _tensor(self, name: str, role: str, shape: Shape) -> Tensor:
        info = self._file.tensors.get(name)
        if info is None:
            raise UserError(
                f"{self._path} lacks the tensor {name}, expected with shape {list(shape)}"
            )
        path = self._file.path_of(name)
        if info.shape != shape:
            got = list(info.shape)
            raise UserError(f"{path}: {name} has shape {got}, expected {list(shape)}")
        if info.type not in DENSE and info.type not in BLOCKS:
            known = ", ".join(type_.name for type_ in (*DENSE, *BLOCKS))
            raise UserError(f"{path}: {name} has type {info.type.name}, supported are {known}")
        read = lambda: self._stored(name, role)
        values = lambda: _values(read(), info.type, shape)
        return Tensor(name, info.type.name.lower(), shape, read, values)

    def _stored(self, name: str, role: str) -> np.ndarray:
        """A tensor as it is stored, [*shape], or uint8 [out, bytes of a row] for blocks."""
        info = self._file.tensors[name]
        rows = self._file.bytes_of(name).view(DENSE.get(info.type, np.uint8))
        rows = rows.reshape(*info.shape[:-1], -1)
        if not self._interleaved or role not in _INTERLEAVED:
            return rows
        pairs = rows.reshape(-1, self.config.head_dim // 2, 2, rows.shape[-1])
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    def _with_rope_factors(self, config: LlamaConfig) -> LlamaConfig:
        """Adds what the frequencies are divided by: the file's tensor and its linear scaling."""
        linear = linear_factor(self._path, self._file.metadata)
        shape = (config.head_dim // 2,)
        if ROPE_FACTORS in self._file.tensors:
            factors = self._tensor(ROPE_FACTORS, ROPE_FACTORS, shape).values()
        elif linear == 1:
            return config
        else:
            factors = np.ones(shape, np.float32)
        scaled = tuple(float(factor) * linear for factor in factors)
        try:
            return dataclasses.replace(config, rope_factors=scaled)
        except UserError as error:
            raise UserError(f"{self._path}: {error}") from None


def open_gguf(path: Path) -> GGUFSource:
    """Opens a model in a GGUF file, or in several of which `path` is the first.

    Raises:
      UserError: where a file is missing or damaged, or describes what is not supported.
    """
    return GGUFSource(open_file(path))


def _expected(config: LlamaConfig) -> Iterator[tuple[str, str, Shape]]:
    """The names, roles and shapes of all tensors of a model."""
    for role, shape in model_shapes(config).items():
        yield NAMES[role], role, shape
    for layer in range(config.layers):
        for role, shape in layer_shapes(config).items():
            yield NAMES[role].format(layer), role, shape


def _values(stored: np.ndarray, type_: Type, shape: Shape) -> np.ndarray:
    """Float32 [*shape], by the gguf package for blocks."""
    with np.errstate(all="ignore"):  # bytes may say anything; what is not finite shows later
        if type_ in DENSE:
            return stored.astype(np.float32)
        rows = stored.reshape(-1, stored.shape[-1])
        values = np.empty((len(rows), shape[-1]), np.float32)
        for start in range(0, len(rows), _ROWS):
            values[start : start + _ROWS] = dequantize(rows[start : start + _ROWS], type_)
        return values.reshape(shape)
