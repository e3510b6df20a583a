import dataclasses
from typing import Any

import numpy as np
import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.weights.configuration import config_from_fields
from deltakv_jax.weights.fields import Fields
from deltakv_jax.weights.gguf.config import config_from_metadata, linear_factor
from deltakv_jax.weights.gguf.walk import walk
from scripts.fuzzing.gguf_files import model_metadata
from tests.weights.gguf.material import CONFIG


def metadata(arch: str = "llama", **changes: Any) -> dict[str, Any]:
    """Those of CONFIG; a change's name is a key's last words, "__" for its dots, None for away."""
    values = {"general.architecture": arch, **model_metadata(CONFIG, arch)}
    values |= {f"{arch}.{name.replace('__', '.')}": value for name, value in changes.items()}
    return {key: value for key, value in values.items() if value is not None}


def config(arch: str = "llama", **changes: Any):
    return config_from_metadata("a.gguf", metadata(arch, **changes), tied=False)


def test_sizes_and_constants():
    assert config() == CONFIG
    assert config_from_metadata("a.gguf", metadata(), tied=True).tied


def test_families():
    assert config("qwen2") == dataclasses.replace(CONFIG, qkv_bias=True)
    assert config("qwen3") == dataclasses.replace(CONFIG, qk_norm=True)


def test_defaults():
    got = config(
        rope__freq_base=None,
        rope__dimension_count=None,
        attention__head_count_kv=None,
        attention__key_length=None,
        attention__value_length=None,
    )
    assert got.rope_theta == 10000.0
    assert got.kv_heads == CONFIG.heads
    assert got.head_dim == CONFIG.width // CONFIG.heads


def test_a_head_may_be_wider_than_its_share():
    assert config().head_dim == 2 * CONFIG.width // CONFIG.heads


def test_the_vocabulary_is_that_of_the_tokenizer_where_no_size_is_given():
    values = metadata(vocab_size=None) | {"tokenizer.ggml.tokens": ["a"] * 17}
    assert config_from_metadata("a.gguf", values, tied=False).vocab_size == 17


def test_float32_constants_are_those_of_the_same_decimals(shared):
    """So that both forms of a model compile to the same constants."""
    path = shared / "models" / "tiny1m-f32.gguf"
    got = config_from_metadata(str(path), walk(path).metadata, tied=False)
    assert got == config_from_fields(Fields.read(shared / "models" / "tiny1m" / "config.json"))
    assert config(attention__layer_norm_rms_epsilon=float(np.float32(1e-5))).norm_eps == 1e-5


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 1.0),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, 1.0),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, 4.0),
        ({"rope__scaling__factor": 4.0}, 4.0),
        ({"rope__scaling__factor": 0.0}, 1.0),
        ({"rope__scale_linear": 2.0}, 2.0),
    ],
)
def test_linear_scaling(changes, factor):
    assert linear_factor("a.gguf", metadata(**changes)) == factor


@pytest.mark.parametrize("kind", ["yarn", "longrope", "su"])
def test_other_scalings_are_refused_by_name(kind):
    values = metadata(rope__scaling__type=kind, rope__scaling__factor=4.0)
    with pytest.raises(
        UserError, match=f'a.gguf: llama.rope.scaling.type is "{kind}", only "none"'
    ):
        linear_factor("a.gguf", values)


HARMLESS = {
    "attention__causal": True,
    "expert_count": 0,
    "attention__sliding_window": 0,
    "use_parallel_residual": False,
    "rope__scaling__attn_factor": 1.0,
    "rope__scaling__original_context_length": 4096,
    "rope__scaling__finetuned": True,
    "tensor_data_layout": "Meta AI original pth",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_is_accepted(name):
    assert config(**{name: HARMLESS[name]}) == CONFIG


REFUSED = {
    "expert_count": (8, "llama.expert_count is 8, which is not supported"),
    "expert_used_count": (2, "llama.expert_used_count is 2"),
    "attention__sliding_window": (4096, "llama.attention.sliding_window is 4096, which is not"),
    "attention__sliding_window_pattern": ([True, False], "sliding_window_pattern is a list of 2"),
    "attention__causal": (False, None),
    "attention__scale": (0.125, "llama.attention.scale is 0.125"),
    "attention__clamp_kqv": (8.0, "clamp_kqv is 8.0"),
    "attention__max_alibi_bias": (8.0, "max_alibi_bias is 8.0"),
    "attn_logit_softcapping": (50.0, "attn_logit_softcapping is 50.0"),
    "final_logit_softcapping": (30.0, "final_logit_softcapping is 30.0"),
    "logit_scale": (0.5, "logit_scale is 0.5"),
    "embedding_scale": (12.0, "embedding_scale is 12.0"),
    "residual_scale": (0.2, "residual_scale is 0.2"),
    "use_parallel_residual": (True, "use_parallel_residual is True"),
    "rope__scaling__attn_factor": (1.2, "rope.scaling.attn_factor is 1.2"),
    "rope__scaling__yarn_beta_fast": (32.0, "yarn_beta_fast is 32.0"),
    "rope__dimension_count": (8, "rope.dimension_count is 8, only 16, all of a head, is supported"),
    "attention__value_length": (8, "attention.value_length is 8, only 16"),
    "attention__head_count": ([4, 4], "head_count is a list of 2 values, only models with one"),
    "attention__head_count_kv": ([2, 1], "head_count_kv is a list of 2 values"),
    "feed_forward_length": ([64, 32], "feed_forward_length is a list of 2 values"),
    "something_new": ("on", "llama.something_new is on, which is not supported"),
}


@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name][1]])
def test_what_changes_the_result_is_refused_by_name(name):
    value, says = REFUSED[name]
    with pytest.raises(UserError, match=says) as caught:
        config(**{name: value})
    assert str(caught.value).startswith("a.gguf: ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"block_count": None}, "a.gguf: llama.block_count must be an integer, it is missing"),
        ({"block_count": "two"}, 'a.gguf: llama.block_count must be an integer, got "two"'),
        ({"block_count": True}, "a.gguf: llama.block_count must be an integer, got true"),
        ({"embedding_length": 32.0}, "llama.embedding_length must be an integer, got 32.0"),
        ({"vocab_size": None}, "llama.vocab_size must be an integer, it is missing"),
        ({"attention__head_count": 0}, "a.gguf: heads must be from 1 to .*, got 0"),
        ({"attention__head_count_kv": 3}, "a.gguf: heads .4. must be a multiple of kv_heads .3."),
        ({"rope__freq_base": float("nan")}, "llama.rope.freq_base is nan, expected a finite"),
        ({"rope__freq_base": 1e300}, "llama.rope.freq_base is inf, expected a finite float32"),
        ({"rope__freq_base": "x\n" * 500}, r"must be a number, got \"x x x"),
        ({"attention__layer_norm_rms_epsilon": None}, "rms_epsilon must be a number, it is mis"),
    ],
)
def test_a_wrong_value_is_named(changes, says):
    with pytest.raises(UserError, match=says) as caught:
        config(**changes)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_other_architectures_are_refused():
    with pytest.raises(UserError, match=r"general.architecture is gemma3, supported are llama, qw"):
        config("gemma3")
    with pytest.raises(UserError, match=r"general.architecture must be a string, it is missing"):
        config_from_metadata("a.gguf", {}, tied=False)
    with pytest.raises(UserError, match=r'general.type is "adapter", only "model" is supported'):
        config_from_metadata("a.gguf", metadata() | {"general.type": "adapter"}, tied=False)
