"""Hugging Face's config.json as a `LlamaConfig`, and back.

Every field that changes what the model computes is honoured or refused by its name. Defaults are
those of each family in transformers, for fields that a file leaves out; a field that is null is
given.
"""

import dataclasses
from typing import Any

from deltakv_jax.config import LlamaConfig, RopeScaling
from deltakv_jax.errors import UserError
from deltakv_jax.weights.fields import Fields, shown

# A field that would change the result, and the values with which it does not.
Harmless = dict[str, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What a model_type means.

    Attributes:
      defaults: of fields that its files may leave out.
      harmless: of fields that mean something in this family.
      qkv_bias: as in `LlamaConfig`.
      qk_norm: as in `LlamaConfig`.
    """

    defaults: dict[str, Any]
    harmless: Harmless
    qkv_bias: bool = False
    qk_norm: bool = False


FAMILIES = {
    "llama": Family(
        defaults={"max_position_embeddings": 2048},
        harmless={"sliding_window": (), "attention_bias": (False,)},
    ),
    "mistral": Family(
        defaults={
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        harmless={"sliding_window": (), "attention_bias": (False,)},
    ),
    "qwen2": Family(
        defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32},
        harmless={"use_sliding_window": (False,), "attention_bias": (True,)},
        qkv_bias=True,
    ),
    "qwen3": Family(
        defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
        harmless={"use_sliding_window": (False,), "attention_bias": (False,)},
        qk_norm=True,
    ),
}

_HARMLESS: Harmless = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "is_causal": (True,),
    "use_mrope": (False,),
    "partial_rotary_factor": (1.0,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "quantization_config": (),
}

# Of `rope_scaling` or `rope_parameters`; the last three would hold what is not read here.
_HARMLESS_ROPE: Harmless = {
    "partial_rotary_factor": (1.0,),
    "mrope_section": (),
    "full_attention": (),
    "sliding_attention": (),
}


def config_from_fields(fields: Fields) -> LlamaConfig:
    """The config that a config.json describes.

    Raises:
      UserError: where it is another kind of model, or a field is missing, of the wrong type or not
        supported.
    """
    family = _family(fields)
    fields = Fields(fields.source, {**family.defaults, **fields.values})
    _refuse_what_changes_the_result(fields, {**_HARMLESS, **family.harmless})
    try:
        return _config(fields, family)
    except UserError as error:
        prefix = "" if str(error).startswith(fields.source) else f"{fields.source}: "
        raise UserError(f"{prefix}{error}") from None


def _family(fields: Fields) -> Family:
    if "model_type" not in fields:
        known = ", ".join(FAMILIES)
        raise UserError(f"{fields.source}: model_type is missing, expected one of {known}")
    fields.refuse("model_type", *FAMILIES)
    return FAMILIES[fields.get("model_type", str)]


def _refuse_what_changes_the_result(fields: Fields, harmless: Harmless) -> None:
    for name, values in harmless.items():
        fields.refuse(name, *values)
    kinds = fields.values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise UserError(
            f'{fields.source}: layer_types may hold only "full_attention", got {shown(kinds)}'
        )


def _config(fields: Fields, family: Family) -> LlamaConfig:
    heads = fields.get("num_attention_heads", int)
    return LlamaConfig(
        vocab_size=fields.get("vocab_size", int),
        width=fields.get("hidden_size", int),
        layers=fields.get("num_hidden_layers", int),
        heads=heads,
        kv_heads=fields.get("num_key_value_heads", int, heads),
        head_dim=_head_dim(fields),
        ffn=fields.get("intermediate_size", int),
        context=fields.get("max_position_embeddings", int),
        rope_theta=_rope_theta(fields),
        norm_eps=fields.get("rms_norm_eps", float, 1e-6),
        tied=fields.get("tie_word_embeddings", bool, False),
        rope_scaling=_rope_scaling(fields),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
    )


def _head_dim(fields: Fields) -> int:
    if "head_dim" in fields:
        return fields.get("head_dim", int)
    width, heads = fields.get("hidden_size", int), fields.get("num_attention_heads", int)
    if heads < 1 or width % heads:
        raise UserError(
            f"hidden_size ({width}) must be a multiple of num_attention_heads ({heads}) where "
            "head_dim is not given"
        )
    return width // heads


def _rope_fields(fields: Fields) -> Fields:
    """Older files have `rope_scaling`; since transformers 5 it is `rope_parameters`."""
    return fields.below("rope_scaling" if "rope_scaling" in fields else "rope_parameters")


def _rope_theta(fields: Fields) -> float:
    return _rope_fields(fields).get("rope_theta", float, fields.get("rope_theta", float, 10000.0))


def _rope_scaling(fields: Fields) -> RopeScaling | None:
    rope = _rope_fields(fields)
    key = "type" if "type" in rope and "rope_type" not in rope else "rope_type"
    if "factor" in rope and key not in rope:
        raise UserError(f"{rope.source}: {key} is missing, which says what factor means")
    rope.refuse(key, "default", "llama3")
    for name, values in _HARMLESS_ROPE.items():
        rope.refuse(name, *values)
    if rope.get(key, str, "default") == "default":
        return None
    original = "original_max_position_embeddings"
    return RopeScaling(
        factor=rope.get("factor", float),
        low_freq_factor=rope.get("low_freq_factor", float),
        high_freq_factor=rope.get("high_freq_factor", float),
        original_context=(fields if original in fields else rope).get(original, int),
    )


def fields_from_config(config: LlamaConfig) -> dict[str, Any]:
    """What config.json says of this config; `config_from_fields` reads it back.

    Raises:
      UserError: where no family of Hugging Face has what the config says.
    """
    model_type = _model_type(config)
    if config.rope_factors is not None:
        raise UserError("config.json has no field for rope_factors")
    return {
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.qkv_bias,
        "mlp_bias": False,
        "rope_scaling": config.rope_scaling and _rope_scaling_fields(config.rope_scaling),
    }


def _model_type(config: LlamaConfig) -> str:
    """The first family with these biases and norms."""
    for name, family in FAMILIES.items():
        if (family.qkv_bias, family.qk_norm) == (config.qkv_bias, config.qk_norm):
            return name
    raise UserError("no model_type of Hugging Face has both biases and norms of q and k")


def _rope_scaling_fields(scaling: RopeScaling) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }
