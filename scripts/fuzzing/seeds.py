"""Valid files below 16 KB, from which mutated ones are made."""

import dataclasses
import io
import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import sentencepiece
import tokenizers
from gguf.constants import GGMLQuantizationType as Type
from safetensors.numpy import save
from tokenizers import decoders, models, pre_tokenizers

from deltakv_jax.config import LlamaConfig
from deltakv_jax.weights.configuration import fields_from_config
from deltakv_jax.weights.huggingface import NAMES
from deltakv_jax.weights.roles import layer_shapes, model_shapes
from deltakv_jax.weights.tensors import INDEX, SINGLE
from scripts.fuzzing.gguf_files import (
    byte_level_metadata,
    model_metadata,
    random_tensor,
    random_tensors,
    sentencepiece_metadata,
    write_gguf,
)

LARGEST = 16 << 10  # bytes of a file
TOKENS = 40

_CONFIG = LlamaConfig(
    vocab_size=TOKENS,
    width=32,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=16,
    ffn=32,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)
_NARROW = dataclasses.replace(_CONFIG, width=16, head_dim=8, ffn=16)
_WIDE = dataclasses.replace(_CONFIG, width=256, heads=1, head_dim=2, ffn=2)
_SMALL: dict[str, Type] = dict.fromkeys(
    ("embedding", "query", "output", "gate", "up", "down"), Type.Q4_0
)
_K_QUANTS = {
    "embedding": Type.Q4_K,
    "query": Type.Q2_K,
    "key": Type.Q3_K,
    "value": Type.IQ4_XS,
    "output": Type.F16,
    "gate": Type.Q5_K,
    "up": Type.Q6_K,
    "down": Type.F16,
}


@dataclasses.dataclass(frozen=True)
class Seed:
    """A model that loads.

    Attributes:
      files: by name, in one folder.
      opened: the one that is opened; "" for the folder.
      mutated: those that are to be mutated.
    """

    files: dict[str, bytes]
    opened: str
    mutated: tuple[str, ...]


def gguf() -> list[Seed]:
    """Each supported type of tensor, both kinds of tokenizer, three architectures."""
    types = (Type.Q8_0, Type.F16, Type.Q5_1, Type.Q4_0, Type.BF16, Type.IQ4_NL)
    mixed = dict(zip(("embedding", "query", "key", "value", "output", "down"), types, strict=True))
    pieces, byte_level = sentencepiece_metadata(TOKENS), byte_level_metadata(TOKENS)
    factors = {"rope_freqs.weight": random_tensor(np.random.default_rng(0), (8,), Type.F32)}
    factors["rope_freqs.weight"][0][...] = 2.0
    biased = dataclasses.replace(_CONFIG, qkv_bias=True)
    normed = dataclasses.replace(_CONFIG, qk_norm=True)
    return [
        _gguf("llama", _CONFIG, {**_SMALL, **mixed, "up": Type.Q4_1}, pieces, factors),
        _gguf("llama", _CONFIG, {**_SMALL, "gate": Type.Q5_0}, byte_level, {}),
        _gguf("qwen2", biased, _SMALL, byte_level, {}),
        _gguf("qwen3", normed, _SMALL, pieces, {}),
        _gguf("llama", _WIDE, _K_QUANTS, pieces, {}),
    ]


def gguf_parts() -> list[Seed]:
    """A model in two parts."""
    tensors = list(random_tensors(_CONFIG, _SMALL).items())
    pairs = {**model_metadata(_CONFIG), **sentencepiece_metadata(TOKENS)}
    split = {"split.count": 2, "split.tensors.count": len(tensors)}
    files = {
        "m-00001-of-00002.gguf": _written(
            "llama", {**pairs, **split, "split.no": 0}, dict(tensors[:5])
        ),
        "m-00002-of-00002.gguf": _written("llama", {**split, "split.no": 1}, dict(tensors[5:])),
    }
    return [Seed(files, next(iter(files)), tuple(files))]


def safetensors() -> list[Seed]:
    """A folder with one file of weights."""
    return [_folder((SINGLE,))]


def index() -> list[Seed]:
    """A folder with two files of weights and their index."""
    whole = _tensors()
    shards = {"one.safetensors": list(whole)[::2], "two.safetensors": list(whole)[1::2]}
    places = {name: shard for shard, names in shards.items() for name in names}
    files = {shard: save({name: whole[name] for name in names}) for shard, names in shards.items()}
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": places}).encode()
    seed = _folder((INDEX, INDEX, *shards))  # the index twice as often
    del seed.files[SINGLE]
    return [dataclasses.replace(seed, files={**seed.files, **files})]


def configs() -> list[Seed]:
    """A folder, its configurations to be mutated."""
    return [_folder(("config.json", "config.json", "tokenizer_config.json"))]


def tokenizer_json() -> list[Seed]:
    """A folder, its tokenizer.json to be mutated."""
    return [_folder(("tokenizer.json",))]


def tokenizer_model() -> list[Seed]:
    """A folder with a SentencePiece model in place of tokenizer.json, to be mutated."""
    seed = _folder(("tokenizer.model",))
    del seed.files["tokenizer.json"]
    return [Seed({**seed.files, "tokenizer.model": _sentencepiece()}, "", seed.mutated)]


def _gguf(arch: str, config: LlamaConfig, types, tokenizer, more) -> Seed:
    metadata = {**model_metadata(config, arch), **tokenizer}
    content = _written(arch, metadata, {**random_tensors(config, types), **more})
    return Seed({"m.gguf": content}, "m.gguf", ("m.gguf",))


def _written(arch: str, metadata, tensors) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write_gguf(path, arch, metadata, tensors)
        return path.read_bytes()


def _folder(mutated: tuple[str, ...]) -> Seed:
    fields = {**fields_from_config(_NARROW), "bos_token_id": 0, "eos_token_id": [1]}
    files = {
        "config.json": json.dumps(fields).encode(),
        "tokenizer_config.json": json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}).encode(),
        "tokenizer.json": _byte_level().encode(),
        SINGLE: save(_tensors(), metadata={"format": "pt"}),
    }
    return Seed(files, "", mutated)


def _tensors() -> dict[str, np.ndarray]:
    """The tensors of a folder, of three dtypes."""
    rng = np.random.default_rng(0)
    shapes = model_shapes(_NARROW) | layer_shapes(_NARROW)
    dtypes = {"query": np.float32, "embedding": ml_dtypes.bfloat16}
    return {
        NAMES[role].format(0): rng.standard_normal(shape).astype(dtypes.get(role, np.float16))
        for role, shape in shapes.items()
    }


def _byte_level() -> str:
    """A tokenizer.json whose tokens are letters and pairs of them."""
    metadata = byte_level_metadata(TOKENS)
    vocabulary = {piece: i for i, piece in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


def _sentencepiece() -> bytes:
    """A tokenizer.model of `TOKENS` pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 10),
        model_writer=model,
        vocab_size=TOKENS,
        model_type="bpe",
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return model.getvalue()
