"""GGUF files made byte by byte, and small models written by the `gguf` package."""

import struct
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType as Type
from gguf.constants import GGUFValueType as Kind

from deltakv_jax.config import LlamaConfig
from scripts.fuzzing.gguf_files import (
    Stored,
    model_metadata,
    random_tensors,
    sentencepiece_metadata,
    write_gguf,
)

CONFIG = LlamaConfig(
    vocab_size=300,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=64,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=False,
)


def write_model(
    path: Path,
    *,
    config: LlamaConfig = CONFIG,
    arch: str = "llama",
    types: dict[str, Type] | None = None,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, Stored | None] | None = None,
) -> Path:
    """A random model; `metadata` and `tensors` add to it or replace, None takes away."""
    pairs = {**model_metadata(config, arch), **sentencepiece_metadata(config.vocab_size)}
    pairs.update(metadata or {})
    stored = {**random_tensors(config, types or {}), **(tensors or {})}
    write_gguf(
        path,
        arch,
        {key: value for key, value in pairs.items() if value is not None},
        {name: tensor for name, tensor in stored.items() if tensor is not None},
    )
    return path


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def string_pair(key: str, value: str | bytes) -> bytes:
    return pair(key, Kind.STRING, text(value))


def array(kind: int, count: int, elements: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + elements


def info(name: str, dims: tuple[int, ...], type_: int = Type.F32, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + sizes + struct.pack("<IQ", type_, offset)


def gguf_bytes(
    pairs: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (),
    *,
    data: bytes = b"",
    start: bytes = b"GGUF\x03\x00\x00\x00",
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file; `counts` are the numbers of tensors and pairs that it claims."""
    tensors, values = counts or (len(infos), len(pairs))
    header = start + struct.pack("<QQ", tensors, values) + b"".join([*pairs, *infos])
    return header + bytes(-len(header) % alignment if infos else 0) + data
