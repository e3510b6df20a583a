"""What packing a prompt costs: its keys and values written to every layer, over the prefill."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.cache import KVCache, write
from scripts.bench import model_speed, timing
from scripts.bench.model_speed import PROMPT
from scripts.bench.results import Row
from scripts.bench.shapes import MODELS

KV = ("f16", "q4_0", "q4_0:rotate", "delta", "layered", "layered:bits=3", "layered:bits=2")
ROUNDS = 9
GOAL_KV, GOAL = "layered", 0.1


def rows() -> list[Row]:
    """A prompt of 512 tokens, as the prefill of the same prompt times it."""
    name = "llama_100m"
    model = model_speed.random_model(MODELS[name])
    whole = {f"prefill {GOAL_KV}": model_speed.prefill_timer(model, GOAL_KV)}
    timers = {kv: write_timer(model.config, kv) for kv in KV}
    times = timing.interleaved({**whole, **timers}, ROUNDS)
    return [_row(name, model.config, kv, times[kv], times[f"prefill {GOAL_KV}"]) for kv in KV]


def _row(name: str, config, kv: str, seconds: float, prefill: float) -> Row:
    values = 2 * PROMPT * config.layers * config.kv_heads * config.head_dim
    return Row(
        part="encode",
        shape=name,
        what=kv,
        figure=seconds / values * 1e9,
        unit="ns/value",
        ratio=seconds / prefill,
        most=GOAL if kv == GOAL_KV else None,
        against=f"prefill of {PROMPT} tokens over {GOAL_KV}, {prefill * 1e3:.4g} ms; "
        f"{seconds * 1e3:.3g} ms",
    )


def write_timer(config, kv: str) -> timing.Timer:
    """Writes one prompt to all layers of an empty cache."""
    shape = (1, PROMPT, config.kv_heads, config.head_dim)
    k, v = (jax.random.normal(jax.random.key(seed), shape) for seed in range(2))

    def once() -> float:
        cache = jax.block_until_ready(model_speed.empty_cache(config, kv, PROMPT))
        return timing.timed(lambda: _write_layers(cache, k, v))()

    return once


@functools.partial(jax.jit, donate_argnums=0)
def _write_layers(cache: KVCache, k: Array, v: Array) -> KVCache:
    counts = jnp.full((1,), PROMPT, jnp.int32)
    layers = len(cache.layout.kind_of)
    return jax.lax.fori_loop(0, layers, lambda at, held: write(held, at, k, v, counts), cache)
