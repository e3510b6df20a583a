"""Small GGUF files of random models, written by the `gguf` package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGUFValueType
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from deltakv_jax.config import LlamaConfig
from deltakv_jax.weights.gguf.source import NAMES
from deltakv_jax.weights.roles import Shape, layer_shapes, model_shapes

Stored = tuple[np.ndarray, Type]

_KINDS = {
    bool: GGUFValueType.BOOL,
    int: GGUFValueType.UINT32,
    float: GGUFValueType.FLOAT32,
    str: GGUFValueType.STRING,
    list: GGUFValueType.ARRAY,
}


def model_metadata(config: LlamaConfig, arch: str = "llama") -> dict[str, Any]:
    """The key-value pairs of a model without its tokenizer."""
    return {
        "general.name": "random",
        f"{arch}.context_length": config.context,
        f"{arch}.embedding_length": config.width,
        f"{arch}.block_count": config.layers,
        f"{arch}.feed_forward_length": config.ffn,
        f"{arch}.attention.head_count": config.heads,
        f"{arch}.attention.head_count_kv": config.kv_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.value_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config.norm_eps,
        f"{arch}.rope.freq_base": config.rope_theta,
        f"{arch}.rope.dimension_count": config.head_dim,
        f"{arch}.vocab_size": config.vocab_size,
    }


def sentencepiece_metadata(tokens: int) -> dict[str, Any]:
    """A tokenizer of that many tokens: special ones, letters, pairs; the bytes if they fit."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    pairs = [first + second for first in letters for second in letters[1:]]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if tokens > 256 + 32 else []
    pieces = ["<unk>", "<s>", "</s>", *bytes_, *letters, *pairs][:tokens]
    kinds = [2, 3, 3, *[6] * len(bytes_), *[1] * tokens][:tokens]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(i) for i in range(tokens)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def byte_level_metadata(tokens: int) -> dict[str, Any]:
    """A byte-level tokenizer of that many tokens, special ones, letters and pairs."""
    letters = ["\u0120", *"abcdefghijklmnopqrstuvwxyz"]
    pairs = [(first, second) for first in letters for second in letters[1:]]
    merges = pairs[: tokens - 2 - len(letters)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": ["<bos>", "<eos>", *letters, *map("".join, merges)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.token_type": [3, 3, *[1] * (tokens - 2)],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }


def random_tensors(
    config: LlamaConfig, types: Mapping[str, Type], seed: int = 0
) -> dict[str, Stored]:
    """All tensors of a model by their names; `types` gives those roles that are not F32."""
    rng = np.random.default_rng(seed)
    draw = lambda role, shape: random_tensor(rng, shape, types.get(role, Type.F32))
    tensors = {NAMES[role]: draw(role, s) for role, s in model_shapes(config).items()}
    for layer in range(config.layers):
        for role, shape in layer_shapes(config).items():
            tensors[NAMES[role].format(layer)] = draw(role, shape)
    return tensors


def random_tensor(rng: np.random.Generator, shape: Shape, type_: Type) -> Stored:
    """Random values of a type, as they are stored; random bytes where nothing quantises to it."""
    try:
        return quantize(rng.standard_normal(shape, np.float32), type_), type_
    except NotImplementedError:
        return _random_blocks(rng, shape, type_), type_


def write_gguf(
    path: Path, arch: str, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]
) -> None:
    """Writes a file."""
    writer = GGUFWriter(path, arch)
    for key, value in metadata.items():
        writer.add_key_value(key, value, _KINDS[type(value)])
    for name, (stored, type_) in tensors.items():
        writer.add_tensor(name, stored, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random_blocks(rng: np.random.Generator, shape: Shape, type_: Type) -> np.ndarray:
    """Uint8 [out, bytes of a row], whose values are all finite."""
    block, block_bytes = GGML_QUANT_SIZES[type_]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // block, block_bytes), np.uint8)
    bad = np.ones(len(blocks), bool)
    while bad.any():
        blocks[bad] = rng.integers(0, 256, (bad.sum(), block_bytes), np.uint8)
        with np.errstate(all="ignore"):
            bad = ~np.isfinite(dequantize(blocks, type_)).all(axis=-1)
    return blocks.reshape(shape[0], -1)
