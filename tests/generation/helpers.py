"""A small random model, caches and prompts for it, and a count of compilations."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

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


def random_model(config: LlamaConfig = CONFIG, seed: int = 0) -> Llama:
    return Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(seed))


def empty(spec: str, capacity: int, batch: int = 1, config: LlamaConfig = CONFIG) -> KVCache:
    return make_cache(
        parse_spec(spec),
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        capacity=capacity,
        batch=batch,
    )


def tokens_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, length]).integers(0, CONFIG.vocab_size, length).tolist()


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
