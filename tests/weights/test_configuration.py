import dataclasses
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


def config(**changes) -> LlamaConfig:
    return config_from_fields(Fields("config.json", MINIMAL | changes))


def test_fields_left_out_have_hugging_faces_defaults():
    assert config() == LlamaConfig(
        vocab_size=100,
        width=64,
        layers=3,
        heads=4,
        kv_heads=4,
        head_dim=16,
        ffn=96,
        context=2048,
        rope_theta=10000.0,
        norm_eps=1e-6,
        tied=False,
    )


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
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"head_dim": None, "num_key_value_heads": None, "sliding_window": None},
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
        {"pretraining_tp": 2, "torch_dtype": "bfloat16", "use_cache": True},
    ],
)
def test_what_changes_nothing_is_let_through(fields):
    assert config(**fields) == config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, 'model_type is "mistral", only "llama" is supported'),
        ({"model_type": None}, 'model_type is missing, expected "llama"'),
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
        ({"num_hidden_layers": 0}, "layers must be at least 1, got 0"),
        ({"head_dim": 15}, "head_dim must be even for RoPE, got 15"),
        ({"max_position_embeddings": 0}, "context must be at least 1, got 0"),
        ({"rope_theta": 0}, "rope_theta must be positive, got 0"),
        ({"rms_norm_eps": -1.0}, "norm_eps must be positive, got -1.0"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=rf"^config\.json.*{re.escape(message)}") as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


def test_a_written_config_is_read_back():
    for original in (config(), config(rope_scaling={"rope_type": "llama3", **STRETCH})):
        assert config_from_fields(Fields("", fields_from_config(original))) == original
