"""Hugging Face's config.json as a `LlamaConfig`, and back.

Every field that changes what the model computes is honoured or refused by its name; defaults are
those of Hugging Face's LlamaConfig, for fields that it leaves out of the file.
"""

from typing import Any

from deltakv_jax.config import LlamaConfig, RopeScaling
from deltakv_jax.errors import UserError
from deltakv_jax.weights.fields import Fields


def config_from_fields(fields: Fields) -> LlamaConfig:
    """The config that a config.json describes.

    Raises:
      UserError: where it is another kind of model, or a field is missing, of the wrong type or not
        supported.
    """
    _refuse_other_models(fields)
    width, heads = fields.get("hidden_size", int), fields.get("num_attention_heads", int)
    if "head_dim" not in fields and (heads < 1 or width % heads):
        raise UserError(
            f"{fields.source}: hidden_size ({width}) must be a multiple of num_attention_heads "
            f"({heads}) where head_dim is not given"
        )
    try:
        return LlamaConfig(
            vocab_size=fields.get("vocab_size", int),
            width=width,
            layers=fields.get("num_hidden_layers", int),
            heads=heads,
            kv_heads=fields.get("num_key_value_heads", int, heads),
            head_dim=fields.get("head_dim", int, width // max(heads, 1)),
            ffn=fields.get("intermediate_size", int),
            context=fields.get("max_position_embeddings", int, 2048),
            rope_theta=_rope_theta(fields),
            norm_eps=fields.get("rms_norm_eps", float, 1e-6),
            tied=fields.get("tie_word_embeddings", bool, False),
            rope_scaling=_rope_scaling(fields),
        )
    except UserError as error:
        prefix = "" if str(error).startswith(fields.source) else f"{fields.source}: "
        raise UserError(f"{prefix}{error}") from None


def _refuse_other_models(fields: Fields) -> None:
    if "model_type" not in fields:
        raise UserError(f'{fields.source}: model_type is missing, expected "llama"')
    fields.refuse("model_type", "llama")
    fields.refuse("hidden_act", "silu", "swish")
    fields.refuse("attention_bias", False)
    fields.refuse("mlp_bias", False)
    fields.refuse("quantization_config")
    fields.refuse("partial_rotary_factor", 1.0)
    fields.refuse("sliding_window")


def _rope_fields(fields: Fields) -> Fields:
    """Older files have `rope_scaling`; since transformers 5 it is `rope_parameters`."""
    return fields.below("rope_parameters" if "rope_parameters" in fields else "rope_scaling")


def _rope_theta(fields: Fields) -> float:
    return _rope_fields(fields).get("rope_theta", float, fields.get("rope_theta", float, 10000.0))


def _rope_scaling(fields: Fields) -> RopeScaling | None:
    rope = _rope_fields(fields)
    key = "type" if "type" in rope and "rope_type" not in rope else "rope_type"
    if "factor" in rope and key not in rope:
        raise UserError(f"{rope.source}: {key} is missing, which says what factor means")
    rope.refuse(key, "default", "llama3")
    rope.refuse("partial_rotary_factor", 1.0)
    if rope.get(key, str, "default") == "default":
        return None
    return RopeScaling(
        factor=rope.get("factor", float),
        low_freq_factor=rope.get("low_freq_factor", float),
        high_freq_factor=rope.get("high_freq_factor", float),
        original_context=rope.get("original_max_position_embeddings", int),
    )


def fields_from_config(config: LlamaConfig) -> dict[str, Any]:
    """What config.json says of this config; `config_from_fields` reads it back."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        },
    }
