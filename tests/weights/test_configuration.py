import dataclasses
import math
import re

import pytest

from deltakv_jax.config import LlamaConfig, RopeScaling
from deltakv_jax.errors import UserError
from deltakv_jax.weights.configuration import config_from_fields, fields_from_config
from deltakv_jax.weights.fields import Fields

MINIMAL = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
STRETCH = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192)


# What transformers 5.23 has where a file leaves these out.
DEFAULTS = {
    "llama": {"context": 2048, "kv_heads": 4, "head_dim": 16},
    "mistral": {"context": 131072, "kv_heads": 8, "head_dim": 8},
    "qwen2": {"context": 32768, "kv_heads": 32, "head_dim": 2, "qkv_bias": True},
    "qwen3": {"context": 32768, "kv_heads": 32, "head_dim": 128, "qk_norm": True},
}
FAMILIES = sorted(DEFAULTS)


def config(**changes) -> LlamaConfig:
    return config_from_fields(Fields("config.json", MINIMAL | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_left_out_have_the_familys_defaults(family):
    heads = 4 if family == "llama" else DEFAULTS[family]["kv_heads"]
    window = {"sliding_window": None} if family == "mistral" else {}
    assert config(model_type=family, num_attention_heads=heads, **window) == LlamaConfig(
        vocab_size=100,
        width=64,
        layers=3,
        heads=heads,
        ffn=96,
        rope_theta=10000.0,
        norm_eps=1e-6,
        tied=False,
        **DEFAULTS[family],
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_null_is_no_default(family):
    """As in transformers: as many key heads as query heads, and no window."""
    fields = {"model_type": family, "num_key_value_heads": None, "sliding_window": None}
    assert config(**fields).kv_heads == 4


@pytest.mark.parametrize(
    ("field", "value", "attribute"),
    [
        ("num_key_value_heads", 2, "kv_heads"),
        ("head_dim", 32, "head_dim"),
        ("max_position_embeddings", 512, "context"),
        ("rope_theta", 500000, "rope_theta"),
        ("rms_norm_eps", 1e-5, "norm_eps"),
        ("tie_word_embeddings", True, "tied"),
    ],
)
def test_each_field_is_honoured(field, value, attribute):
    assert config(**{field: value}) == dataclasses.replace(config(), **{attribute: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **STRETCH}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **STRETCH}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **STRETCH}},
    ],
)
def test_llama3_scaling_is_read_as_old_and_new_files_write_it(fields):
    assert config(**fields) == dataclasses.replace(config(), rope_theta=5e5, rope_scaling=SCALING)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {}, "rope_parameters": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"head_dim": None, "num_key_value_heads": None, "sliding_window": None},
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        {"pretraining_tp": 2, "torch_dtype": "bfloat16", "use_cache": True},
    ],
)
def test_what_changes_nothing_is_let_through(fields):
    assert config(**fields) == config()


@pytest.mark.parametrize(
    "fields",
    [
        {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 1},
        {"layer_types": ["full_attention"] * 3, "use_mrope": False, "num_experts": 0},
    ],
)
def test_a_window_that_is_not_in_use_changes_nothing(fields):
    qwen = {"model_type": "qwen2", "num_key_value_heads": 2}
    assert config(**qwen, **fields) == config(**qwen)


def test_a_context_that_llama3_scaling_started_from_may_stand_beside_it():
    """As in transformers, which prefers it to the one inside."""
    stretch = {"rope_type": "llama3", **STRETCH, "original_max_position_embeddings": 4}
    fields = {"rope_scaling": stretch, "original_max_position_embeddings": 8192}
    assert config(**fields).rope_scaling == SCALING


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, 'model_type is "gemma", only "llama" or "mistral" or "qwen2" or'),
        ({"model_type": None}, "model_type is missing, expected one of llama, mistral, qwen2, qw"),
        ({"model_type": "mixtral"}, 'model_type is "mixtral", only'),
        ({"num_local_experts": 8}, "num_local_experts is 8, only 0 is supported"),
        ({"num_experts": 4}, "num_experts is 4, only 0 is supported"),
        ({"is_causal": False}, "is_causal is false, only true is supported"),
        ({"use_mrope": True}, "use_mrope is true, only false is supported"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            'layer_types may hold only "full_attention", got ["full_attention", "sliding_',
        ),
        ({"layer_types": 3}, 'layer_types may hold only "full_attention", got 3'),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu", only "silu" or "swish" is supported'),
        ({"attention_bias": True}, "attention_bias is true, only false is supported"),
        ({"mlp_bias": True}, "mlp_bias is true, only false is supported"),
        ({"sliding_window": 4096}, "sliding_window is 4096, only null is supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, only 1.0 is supported"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            'quantization_config is {"quant_method": "gptq"}, only null is supported',
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            'rope_scaling: type is "linear", only "default" or "llama3" is supported',
        ),
        (
            {"rope_parameters": {"rope_type": "yarn"}},
            'rope_parameters: rope_type is "yarn", only "default" or "llama3" is supported',
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'type is "dynamic", only "default"'),
        ({"rope_scaling": {"rope_type": "longrope"}}, 'rope_type is "longrope", only "default"'),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            'rope_parameters: full_attention is {"rope_theta": 1000000.0}, only null is supported',
        ),
        (
            {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}},
            "rope_scaling: mrope_section is [16, 24, 24], only null is supported",
        ),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.25}},
            "rope_parameters: partial_rotary_factor is 0.25, only 1.0 is supported",
        ),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling: rope_type is missing"),
        (
            {"rope_scaling": {"rope_type": "llama3"} | STRETCH | {"factor": None}},
            "rope_scaling: factor must be a number, it is missing",
        ),
        ({"rope_scaling": "llama3"}, 'rope_scaling must be an object, got "llama3"'),
        ({"vocab_size": None}, "vocab_size must be an integer, it is missing"),
        ({"vocab_size": "100"}, 'vocab_size must be an integer, got "100"'),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers must be an integer, got 2.5"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer, got true"),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings must be true or false, got "no"'),
        ({"hidden_size": 63}, "hidden_size (63) must be a multiple of num_attention_heads (4)"),
        ({"num_attention_heads": 0}, "num_attention_heads (0)"),
        ({"num_key_value_heads": 3}, "heads (4) must be a multiple of kv_heads (3)"),
        ({"num_hidden_layers": 0}, "layers must be from 1 to 2147483647, got 0"),
        ({"head_dim": 15}, "head_dim must be even for RoPE, got 15"),
        ({"max_position_embeddings": 0}, "context must be from 1 to 2147483647, got 0"),
        ({"vocab_size": 10**12}, "vocab_size must be from 1 to 2147483647, got 1000000000000"),
        ({"rope_theta": 0}, "rope_theta must be positive and finite, got 0"),
        ({"rope_theta": math.inf}, "rope_theta must be positive and finite, got inf"),
        ({"rms_norm_eps": -1.0}, "norm_eps must be positive and finite, got -1.0"),
        ({"rms_norm_eps": math.nan}, "norm_eps must be positive and finite, got nan"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is beyond the range of a float"),
        (
            {"rope_scaling": {"type": "llama3", **STRETCH, "factor": math.inf}},
            "factor and original_context must be at least 1",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=rf"^config\.json.*{re.escape(message)}") as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "sliding_window is 4096, only null is supported"),
        (
            {"model_type": "mistral", "sliding_window": 32},
            "sliding_window is 32, only null is supported",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True},
            "use_sliding_window is true, only false is supported",
        ),
        (
            {"model_type": "qwen2", "attention_bias": False},
            "attention_bias is false, only true is supported",
        ),
        (
            {"model_type": "qwen3", "attention_bias": True},
            "attention_bias is true, only false is supported",
        ),
    ],
)
def test_what_a_family_does_not_support_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=rf"^config\.json: {re.escape(message)}"):
        config(**changes)


def test_a_long_value_is_cut_in_errors():
    with pytest.raises(UserError, match="hidden_act is") as caught:
        config(hidden_act="x" * 10**6)
    assert len(str(caught.value)) < 300


def test_a_written_config_is_read_back():
    for original in (
        config(),
        config(rope_scaling={"rope_type": "llama3", **STRETCH}),
        config(model_type="qwen2", num_key_value_heads=2),
        config(model_type="qwen3", num_key_value_heads=2),
    ):
        assert config_from_fields(Fields("", fields_from_config(original))) == original


@pytest.mark.parametrize(
    "changes", [{"qkv_bias": True, "qk_norm": True}, {"rope_factors": (2.0,) * 8}]
)
def test_what_config_json_cannot_say_is_not_written(changes):
    with pytest.raises(UserError, match=r"no model_type of Hugging Face|no field for rope_factors"):
        fields_from_config(dataclasses.replace(config(), **changes))
