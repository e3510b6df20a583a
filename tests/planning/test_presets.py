"""Each preset has as many weights as its model is published with, by a count of its own roles."""

import math

import pytest

from deltakv_jax.planning.presets import PRESETS
from deltakv_jax.weights.roles import layer_shapes, model_shapes

WEIGHTS = {
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_number_of_weights_is_the_published_one(name):
    config = PRESETS[name]
    once = sum(map(math.prod, model_shapes(config).values()))
    layer = sum(map(math.prod, layer_shapes(config).values()))
    assert once + config.layers * layer == WEIGHTS[name]


def test_what_the_number_does_not_tell():
    for name, config in PRESETS.items():
        scaling = config.rope_scaling
        assert scaling is not None
        assert (config.rope_theta, config.norm_eps, config.context) == (500000, 1e-5, 131072)
        assert (config.kv_heads, config.vocab_size) == (8, 128256)
        assert config.heads * config.head_dim == config.width
        assert config.tied == name.startswith("llama3.2")
        assert scaling.factor == (32 if config.tied else 8)
        factors = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_context
        assert factors == (1, 4, 8192)
