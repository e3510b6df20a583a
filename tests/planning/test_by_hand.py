"""The hand count and the shapes of the real model and cache agree, neither knowing the other."""

import dataclasses

import pytest

from deltakv_jax.codec import parse_spec
from deltakv_jax.planning import programs
from deltakv_jax.planning.by_hand import hand_count, matrix_bits
from deltakv_jax.planning.models import plan_model
from deltakv_jax.planning.presets import PRESETS

CTX = 8192


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    ("weights", "kv"),
    [
        ("q4_0", "delta"),
        ("q8_0", "q4_0:rotate"),
        ("bf16", "f16/delta:interval=16"),
        ("q4_0", "layered:centre/layered:bits=3:window=64"),
    ],
)
def test_all_presets(name, weights, kv):
    spec = parse_spec(kv)
    model = plan_model(name, weights, on_cpu=True).model
    shapes = programs.make_shapes(model, spec, None, ctx=CTX, batch=2)
    count = hand_count(PRESETS[name], weights, spec, ctx=CTX, batch=2, tensor=1, data=1)
    assert count.weight_bytes == programs.device_bytes(shapes.model)
    assert count.cache_bytes == programs.device_bytes(shapes.cache.stacks)


def test_biases_and_norms_of_heads_count():
    config = plan_model("demo", None, on_cpu=True).config
    count = lambda **fields: hand_count(
        dataclasses.replace(config, **fields),
        "f32",
        parse_spec("f16"),
        ctx=CTX,
        batch=1,
        tensor=1,
        data=1,
    )
    heads = (config.heads + 2 * config.kv_heads) * config.head_dim
    assert count().bias_values == 0
    assert count(qkv_bias=True).bias_values == config.layers * heads
    more = count(qk_norm=True).norm_values - count().norm_values
    assert more == config.layers * 2 * config.head_dim


@pytest.mark.parametrize(
    ("weights", "bits"), [("f32", 32), ("bf16", 16), ("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5)]
)
def test_bits_of_weights(weights, bits):
    assert matrix_bits(weights) == bits


def test_a_mesh_divides_what_it_splits():
    spec = parse_spec("delta")
    config = PRESETS["llama3.1-70b"]
    whole = hand_count(config, "q4_0", spec, ctx=CTX, batch=4, tensor=1, data=1)
    part = hand_count(config, "q4_0", spec, ctx=CTX, batch=4, tensor=4, data=2)
    norms = 4 * whole.norm_values
    assert part.weight_bytes - norms == (whole.weight_bytes - norms) / 4
    assert part.cache_bytes == whole.cache_bytes / 8
