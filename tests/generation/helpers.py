"""Caches and prompts for a small model, its plain logits, and a count of compilations."""

import jax
import jax.numpy as jnp
import numpy as np

from deltakv_jax import attention
from deltakv_jax.cache import KVCache, make_cache
from deltakv_jax.codec import parse_spec
from deltakv_jax.config import LlamaConfig
from deltakv_jax.model import Llama

CONFIG = LlamaConfig(
    vocab_size=97,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=96,
    context=256,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)
CAPACITY = 64  # of nearly all caches: what one test compiles is there for the others


def empty(*specs: str, capacity: int = CAPACITY, batch: int = 1) -> KVCache:
    """A cache of one spec, or with one for each layer."""
    return make_cache(
        tuple(map(parse_spec, specs * (CONFIG.layers // len(specs)))),
        layers=CONFIG.layers,
        kv_heads=CONFIG.kv_heads,
        head_dim=CONFIG.head_dim,
        capacity=capacity,
        batch=batch,
    )


def tokens_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, length]).integers(0, CONFIG.vocab_size, length).tolist()


@jax.jit
def _forward(model: Llama, tokens: jax.Array) -> jax.Array:
    positions = jnp.arange(tokens.shape[1])[None]
    hidden, _ = model.hidden(tokens, positions, None, attend=attention.attend_plain)
    return model.logits(hidden[0])


def plain_logits(model: Llama, tokens: list[int]) -> np.ndarray:
    """The logits [t v] of a forward pass over one whole sequence, without a cache."""
    padded = np.zeros((1, CAPACITY), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(_forward(model, padded))[: len(tokens)]


class Compilations:
    """Counts the programs that XLA compiles while it is entered."""

    def __enter__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error):
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs):
        self.count += event == "/jax/core/compile/backend_compile_duration"
