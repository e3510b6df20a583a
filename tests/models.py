"""Small random models, drawn by numpy: JAX would compile a program for every shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deltakv_jax.config import LlamaConfig
from deltakv_jax.model import Llama


@functools.cache
def abstract(config: LlamaConfig) -> Llama:
    """A float32 model of shapes only."""
    return jax.eval_shape(lambda: Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))


SMALL = LlamaConfig(
    vocab_size=96,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=96,
    context=128,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied=False,
)
"""Untied, with two query heads for each kv head."""


def random_model(config: LlamaConfig, seed: int = 0) -> Llama:
    """As `Llama` draws it, but for norms about 1 and biases about 0 in place of just these."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        norm = "norm" in jax.tree_util.keystr(path)
        drawn = rng.standard_normal(leaf.shape) * (0.1 if norm else leaf.shape[-1] ** -0.5)
        return jnp.asarray(norm + drawn, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract(config))
