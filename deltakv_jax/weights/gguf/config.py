"""GGUF metadata as a `LlamaConfig`.

Every key under the architecture's name is honoured, known not to change the result, or refused by
its name. Defaults are llama.cpp's, for keys that a file leaves out.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.weights.fields import Fields
from deltakv_jax.weights.native import one_line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """What sets the models of an architecture apart.

    Attributes:
      interleaved: whether the rows of queries and keys are stored for RoPE of neighbours.
      qkv_bias: as in `LlamaConfig`.
      qk_norm: as in `LlamaConfig`.
    """

    interleaved: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False


# Mistral is "llama" here.
ARCHITECTURES = {
    "llama": Architecture(interleaved=True),
    "qwen2": Architecture(qkv_bias=True),
    "qwen3": Architecture(qk_norm=True),
}

_READ = (
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
)
# Keys that this model does not read, and the values with which they change nothing; any for those
# that tell what happened in training. Of every other key, 0 and false change nothing.
_HARMLESS: Mapping[str, tuple[Any, ...] | None] = {
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.finetuned": None,
    "rope.scaling.original_context_length": None,
    "tensor_data_layout": None,
}


def config_from_metadata(source: str, metadata: Mapping[str, Any], tied: bool) -> LlamaConfig:
    """The config that a file's metadata describes, its RoPE unscaled.

    Args:
      source: the file, for errors.
      metadata: its key-value pairs.
      tied: whether the file has no head of its own.

    Raises:
      UserError: where it is another kind of model, or a value is missing, of the wrong type or not
        supported.
    """
    arch = architecture(source, metadata)
    fields = _fields(source, metadata, [name for name in metadata if name.startswith(f"{arch}.")])
    _refuse_what_changes_the_result(fields, arch)
    get = lambda name, *default: fields.get(f"{arch}.{name}", int, *default)
    heads = get("attention.head_count")
    try:
        return LlamaConfig(
            vocab_size=_vocab_size(fields, arch, metadata),
            width=get("embedding_length"),
            layers=get("block_count"),
            heads=heads,
            kv_heads=get("attention.head_count_kv", heads),
            head_dim=_head_dim(fields, arch),
            ffn=get("feed_forward_length"),
            context=get("context_length"),
            rope_theta=_decimal(fields, f"{arch}.rope.freq_base", 10000.0),
            norm_eps=_decimal(fields, f"{arch}.attention.layer_norm_rms_epsilon"),
            tied=tied,
            qkv_bias=ARCHITECTURES[arch].qkv_bias,
            qk_norm=ARCHITECTURES[arch].qk_norm,
        )
    except UserError as error:
        prefix = "" if str(error).startswith(source) else f"{source}: "
        raise UserError(f"{prefix}{error}") from None


def architecture(source: str, metadata: Mapping[str, Any]) -> str:
    """The architecture of a file; UserError where it is not supported."""
    kind, name = "general.type", "general.architecture"
    fields = _fields(source, metadata, [kind, name])
    fields.refuse(kind, "model")
    arch = fields.get(name, str)
    if arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{source}: {name} is {arch}, supported are {known}")
    return arch


def linear_factor(source: str, metadata: Mapping[str, Any]) -> float:
    """The number by which all RoPE frequencies are divided.

    Raises:
      UserError: where another scaling is asked for.
    """
    arch = architecture(source, metadata)
    names = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear")
    kind, factor, older = (f"{arch}.{name}" for name in names)
    fields = _fields(source, metadata, [kind, factor, older])
    fields.refuse(kind, "none", "linear")
    divisor = _decimal(fields, factor, _decimal(fields, older, 1.0))
    return 1.0 if fields.get(kind, str, "linear") == "none" or divisor == 0 else divisor


def _fields(source: str, metadata: Mapping[str, Any], names: Iterable[str]) -> Fields:
    """Those of the keys that the file has, strings made fit for an error message."""
    values = {name: metadata[name] for name in names if name in metadata}
    show = lambda value: one_line(value) if isinstance(value, str) else value
    return Fields(source, {name: show(value) for name, value in values.items()})


def _refuse_what_changes_the_result(fields: Fields, arch: str) -> None:
    read = {f"{arch}.{name}" for name in _READ}
    harmless = {f"{arch}.{name}": values for name, values in _HARMLESS.items()}
    for name, value in fields.values.items():
        if name in read and isinstance(value, list):
            raise UserError(
                f"{fields.source}: {name} is a list of {len(value)} values, only models with one "
                "value for all layers are supported"
            )
        accepted = harmless.get(name, ())
        if name in read or accepted is None or not value:
            continue
        if isinstance(value, list) or value not in accepted:
            shown = f"a list of {len(value)}" if isinstance(value, list) else value
            raise UserError(f"{fields.source}: {name} is {shown}, which is not supported")


def _head_dim(fields: Fields, arch: str) -> int:
    """Queries, keys and values of one size, all of it rotated."""
    width, heads = (
        fields.get(f"{arch}.{name}", int) for name in ("embedding_length", "attention.head_count")
    )
    head_dim = fields.get(f"{arch}.attention.key_length", int, width // max(heads, 1))
    for name in ("attention.value_length", "rope.dimension_count"):
        got = fields.get(f"{arch}.{name}", int, head_dim)
        if got != head_dim:
            raise UserError(f"{arch}.{name} is {got}, only {head_dim}, all of a head, is supported")
    return head_dim


def _vocab_size(fields: Fields, arch: str, metadata: Mapping[str, Any]) -> int:
    """As the file says, or the number of tokens that its tokenizer lists."""
    name = f"{arch}.vocab_size"
    pieces = None if name in fields else metadata.get("tokenizer.ggml.tokens")
    return fields.get(name, int, len(pieces) if isinstance(pieces, list) else None)


def _decimal(fields: Fields, name: str, default: float | None = None) -> float:
    """A float32 as the shortest decimal that rounds to it, as config.json has the same number."""
    with np.errstate(over="ignore"):
        value = np.float32(fields.get(name, float, default))
    if not np.isfinite(value):
        raise UserError(f"{fields.source}: {name} is {value}, expected a finite float32")
    return float(str(value))
