"""Time to trace and compile the decode step of a deep model, against a shallow one."""

import jax
import jax.numpy as jnp

from deltakv_jax.config import LlamaConfig
from deltakv_jax.generation.steps import decode_step
from scripts.bench import timing
from scripts.bench.model_speed import empty_cache, random_model
from scripts.bench.results import Row
from scripts.bench.shapes import DEPTHS

KV = ("f16", "delta")
CAPACITY = 512
ROUNDS = 3
GOAL = 1.5


def rows() -> list[Row]:
    """Each depth against the first one."""
    first, *deeper = DEPTHS
    timers = {f"{name} {kv}": timer(DEPTHS[name], kv) for kv in KV for name in DEPTHS}
    times = timing.interleaved(timers, ROUNDS)
    return [
        _row(name, kv, times[f"{name} {kv}"], first, times[f"{first} {kv}"])
        for kv in KV
        for name in deeper
    ]


def _row(name: str, kv: str, seconds: float, first: str, seconds_of_first: float) -> Row:
    return Row(
        part="compile",
        shape=name,
        what=kv,
        figure=seconds,
        unit="s",
        ratio=seconds / seconds_of_first,
        most=GOAL,
        against=f"{first}, {seconds_of_first:.3g} s",
    )


def timer(config: LlamaConfig, kv: str) -> timing.Timer:
    """Compiles from nothing: this process forgets all its programs first."""
    model, tokens = random_model(config), jnp.zeros(1, jnp.int32)
    cache = empty_cache(config, kv, CAPACITY)

    def once() -> float:
        jax.clear_caches()
        return timing.timed(lambda: decode_step.lower(model, tokens, cache).compile())()

    return once
