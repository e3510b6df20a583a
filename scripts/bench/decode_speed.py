"""Decoding with weights and a cache that are drawn at random on the device."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.attention import Implementation
from deltakv_jax.attention.tiled import bytes_read
from deltakv_jax.cache import KVCache
from deltakv_jax.codec import KVSpec
from deltakv_jax.generation.steps import decode_step, empty_cache
from deltakv_jax.linear import multiplied_by
from deltakv_jax.linear.kernel import Implementation as Multiplier
from deltakv_jax.model import Llama
from deltakv_jax.planning.models import plan_model
from scripts.bench import model_speed, random_leaves, timing
from scripts.bench.random_leaves import random_array
from scripts.bench.results import Row

STEPS, ROUNDS = 8, 5
"""Steps that are timed at once, and how often."""
COPY_GOALS = {"gpu": 0.5}
_FACTOR = 0.05
"""The largest float in a cache: attention over noise."""


def rows(
    name: str,
    weights: str,
    specs: Mapping[str, KVSpec],
    context: int,
    *,
    linear: Multiplier | None,
    attention: Implementation | None,
) -> list[Row]:
    """A row for each format of the cache."""
    copies, model = timing.copy_timers(), multiplied_by(random_model(name, weights), linear)
    timers, sizes = {}, {}
    for kv, spec in specs.items():
        cache = filled_cache(model, spec, context)
        held = model.config.layers * bytes_read(cache, 0, context)
        sizes[kv] = model_speed.weight_bytes(model) + held
        timers[kv] = step_timer(model, cache, context, attention)
    times = timing.interleaved({**copies, **timers}, ROUNDS)
    copy, seconds = timing.fastest(times, copies)
    bandwidth = timing.COPY_BYTES / seconds
    shape = f"{name} {weights}, {context} tokens"
    return [_row(shape, kv, sizes[kv], times[kv], copy, bandwidth) for kv in specs]


def _row(shape: str, kv: str, size: int, seconds: float, copy: str, bandwidth: float) -> Row:
    return Row(
        part="decode, random",
        shape=shape,
        what=kv,
        figure=1 / seconds,
        unit="tok/s",
        ratio=size / seconds / bandwidth,
        least=COPY_GOALS.get(jax.default_backend()),
        against=f"{copy}, {bandwidth / 1e9:.4g} GB/s; {size / 1e9:.4g} GB must be read, "
        f"{1e3 * seconds:.4g} ms a step",
    )


def random_model(name: str, weights: str) -> Llama:
    """A model of the sizes of a preset, or of a file of which nothing else is read."""
    model = plan_model(name, weights, on_cpu=jax.default_backend() == "cpu").model
    size = model.config.width**-0.5 / 8  # of a factor; codes of 4 bits reach 8
    leaves, tree = jax.tree_util.tree_flatten_with_path(model)
    keys = jax.random.split(random_leaves.random_key(0), len(leaves))
    drawn = [
        jnp.ones(leaf.shape) if "norm" in path[0].name else random_array(key, leaf, size)
        for key, (path, leaf) in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def filled_cache(model: Llama, spec: KVSpec, context: int) -> KVCache:
    """A cache that holds tokens of noise, with room for the steps that are timed."""
    cache = empty_cache(model.config, spec, capacity=context + STEPS)
    leaves, tree = jax.tree.flatten(cache.stacks)
    keys = jax.random.split(random_leaves.random_key(1), len(leaves))
    pairs = zip(keys, leaves, strict=True)
    drawn = [random_array(key, leaf, _FACTOR) for key, leaf in pairs]
    return dataclasses.replace(cache, stacks=jax.tree.unflatten(tree, drawn))


def step_timer(
    model: Llama, cache: KVCache, context: int, attention: Implementation | None
) -> timing.Timer:
    """The seconds of a step; every run begins with as many tokens."""

    @functools.partial(jax.jit, donate_argnames="cache")
    def run(model: Llama, cache: KVCache) -> tuple[Array, KVCache]:
        def step(_: Array, state: tuple[Array, KVCache]) -> tuple[Array, KVCache]:
            logits, cache = decode_step(model, *state, implementation=attention)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

        held = dataclasses.replace(cache, lengths=jnp.full(1, context, jnp.int32))
        return jax.lax.fori_loop(0, STEPS, step, (jnp.zeros(1, jnp.int32), held))

    def work() -> Array:
        nonlocal cache
        tokens, cache = run(model, cache)
        return tokens

    timer = timing.timed(work)
    return lambda: timer() / STEPS
