"""Decode attention over a long cache: every format, against a plain bfloat16 cache."""

import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.attention.tiled import attend_tiled
from deltakv_jax.cache import KVCache, cache_bytes, make_cache, write
from deltakv_jax.codec import parse_spec
from scripts.bench import timing
from scripts.bench.plain_bf16 import FORMS, Form
from scripts.bench.results import Row
from scripts.bench.shapes import ATTENTION, AttentionShape

KV = ("f32", "bf16", "f16", "q8_0", "q4_0", "q4_0:rotate", "delta", "delta/q4_0")
SHAPE = "llama3_8b_decode_8k"
LAYERS = 4
"""Layers that take turns, as in a model: none is in the processor's cache from the last time."""
ROUNDS = 15
PLAIN_GOAL, Q4_0_GOAL = 1.5, 1.2

Layers = list[tuple[Array, Array]]
"""Keys and values, float32 [b s k d], of each layer."""


def rows() -> list[Row]:
    """Every form of the baseline, every format against the best one, `delta` against q4_0."""
    shape = ATTENTION[SHAPE]
    layers = [random_layer(shape, seed) for seed in range(LAYERS)]
    q = jax.random.normal(jax.random.key(LAYERS), (shape.batch, shape.heads, shape.head_dim))
    caches = {kv: filled_cache(shape, kv, layers) for kv in KV}
    plain = {f"plain: {name}": plain_timer(form, layers, q) for name, form in FORMS.items()}
    packed = {kv: packed_timer(shape, cache, q) for kv, cache in caches.items()}
    times = timing.interleaved({**plain, **packed}, ROUNDS)
    best, _ = timing.fastest(times, plain)
    sizes = {kv: cache_bytes(cache) // LAYERS for kv, cache in caches.items()}
    return _rows(times, best, sizes | dict.fromkeys(plain, sizes["bf16"]))


def _rows(times: Mapping[str, float], best: str, sizes: Mapping[str, int]) -> list[Row]:
    row = functools.partial(_row, times, sizes)
    against_best = [row(name, best, most={"delta": PLAIN_GOAL}.get(name)) for name in times]
    return [*against_best, row("delta", "q4_0", most=Q4_0_GOAL)]


def _row(
    times: Mapping[str, float],
    sizes: Mapping[str, int],
    what: str,
    base: str,
    *,
    most: float | None,
) -> Row:
    size, seconds = sizes[what], times[what]
    return Row(
        part="attention",
        shape=SHAPE,
        what=what,
        figure=1e3 * seconds,
        unit="ms",
        ratio=seconds / times[base],
        most=most,
        against=f"{base}; {size / 1e6:.3g} MB read, {size / seconds / 1e9:.3g} GB/s",
    )


def random_layer(shape: AttentionShape, seed: int) -> tuple[Array, Array]:
    """Keys and values of one layer."""
    size = (2, shape.batch, shape.tokens, shape.kv_heads, shape.head_dim)
    keys, values = jax.random.normal(jax.random.key(seed), size)
    return keys, values


def filled_cache(shape: AttentionShape, kv: str, layers: Layers) -> KVCache:
    """A cache that holds all tokens in every layer."""
    sizes = {"kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "batch": shape.batch}
    cache = make_cache(parse_spec(kv), layers=len(layers), capacity=shape.tokens, **sizes)
    counts = jnp.full(shape.batch, shape.tokens, jnp.int32)
    fill = jax.jit(write, donate_argnums=0)
    for layer, (keys, values) in enumerate(layers):
        cache = fill(cache, jnp.int32(layer), keys, values, counts)
    return cache


def packed_timer(shape: AttentionShape, cache: KVCache, q: Array) -> timing.Timer:
    """The project's attention of one query token over the packed cache, layer after layer."""
    attend = jax.jit(attend_tiled)
    positions = jnp.full((shape.batch, 1), shape.tokens - 1, jnp.int32)
    turn = itertools.cycle([jnp.int32(layer) for layer in range(LAYERS)])
    return timing.timed(lambda: attend(q[:, None], positions, cache, next(turn)))


def plain_timer(form: Form, layers: Layers, q: Array) -> timing.Timer:
    """The same over plain bfloat16 arrays, one for each layer."""
    attend, store = jax.jit(form.attend), jax.jit(form.store)
    turn = itertools.cycle([(store(keys), store(values)) for keys, values in layers])
    return timing.timed(lambda: attend(q, *next(turn)))
