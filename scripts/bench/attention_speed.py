"""Decode attention over a long cache: packed formats against plain caches and the copy rate."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.attention.api import READERS
from deltakv_jax.attention.tiled import bytes_read
from deltakv_jax.cache import KVCache, advance, make_cache, write
from deltakv_jax.cli import arguments
from deltakv_jax.codec import parse_spec
from scripts.bench import plain, timing
from scripts.bench.results import Row
from scripts.bench.shapes import ATTENTION, AttentionShape

KV = ("f32", "bf16", "f16", "q8_0", "q4_0", "q4_0:rotate", "delta", "layered")
SHAPE = "llama3_8b_decode_8k"
ROUNDS = 31
TURNS_BYTES, MOST_TURNS = {"cpu": 2**27, "gpu": 2**31}, 16
PIECE = 8192  # tokens that are packed at once
TRIALS, CONTENDER = 3, 1.5
LIBRARY = f"{plain.LIBRARY}, bf16"

Layers = list[tuple[Array, Array]]
"""Keys and values, float32 [b s k d], of each layer."""

Attend = Callable[[Array, Array, KVCache, Array], Array]
"""(q, positions, cache, layer) -> out, as `attend_tiled` has them."""

ATTENDS: dict[str, Attend] = {name: READERS[name] for name in arguments.ATTENTION}
"""Who reads the packed cache."""


class Goal(NamedTuple):
    """The largest ratio that the formats `GOAL_KV` may have to a base, at a shape."""

    backend: str
    shape: str
    base: str
    most: float


GOAL_KV = ("q4_0", "delta")
GOALS = (
    Goal("cpu", "llama3_8b_decode_8k", "plain bf16", 1.0),
    Goal("cpu", "llama3_8b_decode_8k", "plain f32", 0.6),
    Goal("cpu", "llama3_8b_decode_32k", "plain bf16", 0.8),
    Goal("gpu", "llama3_8b_decode_32k", LIBRARY, 1 / 2),
    Goal("gpu", "llama3_8b_decode_32k_batch_8", LIBRARY, 1 / 2.8),
)
PAIR_GOALS = {"delta": ("q4_0", 1.1), "layered": ("q4_0", 1.25)}
"""The format that another is compared with, and the largest ratio."""
COPY_GOALS = {("gpu", "llama3_8b_decode_32k_batch_8"): 0.75}


class Measured(NamedTuple):
    """One run at one shape.

    Attributes:
      part: what rows say that they are part of.
      shape: its name.
      times: seconds of everything that took turns.
      bases: what times are compared with: its name, and that of its fastest form.
      sizes: bytes that attention over each format must read.
    """

    part: str
    shape: str
    times: Mapping[str, float]
    bases: Mapping[str, str]
    sizes: Mapping[str, int]


def brief() -> list[Row]:
    """Every format against plain bfloat16 alone, and what has a goal."""
    return [row for row in rows() if row.goal or row.against.startswith("plain bf16")]


def rows(name: str = SHAPE, kvs: Sequence[str] = KV, implementation: str = "xla") -> list[Row]:
    """Every form of the baselines, then every format against copying and against the best ones."""
    measured = measure(name, kvs, implementation)
    forms = [_against(measured, form, "plain bf16") for form in _forms(measured)]
    return [*forms, *(row for kv in kvs for row in _format_rows(measured, kv))]


def measure(name: str, kvs: Sequence[str], implementation: str) -> Measured:
    """Times copies, plain caches and packed ones in turn."""
    shape = ATTENTION[name]
    layers = [random_layer(shape, seed) for seed in range(turns(shape))]
    q = jax.random.normal(jax.random.key(len(layers)), (shape.batch, shape.heads, shape.head_dim))
    caches = {kv: filled_cache(shape, kv, layers) for kv in kvs}
    attend = ATTENDS[implementation]
    packed = {kv: packed_timer(shape, cache, q, attend) for kv, cache in caches.items()}
    copies, baselines = timing.copy_timers(), plain_timers(layers, q)
    every = {form: timer for forms in baselines.values() for form, timer in forms.items()}
    times = timing.interleaved({**copies, **every, **packed}, ROUNDS)
    fastest = {
        f"plain {dtype}": timing.fastest(times, forms)[0] for dtype, forms in baselines.items()
    }
    bases = {**fastest, LIBRARY: _plain_name("bf16", plain.LIBRARY)}
    bases["copy"] = timing.fastest(times, copies)[0]
    sizes = {kv: bytes_read(cache, 0, shape.tokens) for kv, cache in caches.items()}
    return Measured(f"attention by {implementation}", name, times, bases, sizes)


def _forms(measured: Measured) -> list[str]:
    return [name for name in measured.times if name.startswith("plain: ")]


def _plain_name(dtype: str, form: str) -> str:
    return f"plain: {dtype}, {form}"


def _format_rows(measured: Measured, kv: str) -> list[Row]:
    bases = [base for base in measured.bases if base != "copy"]
    found = [_bandwidth_row(measured, kv), *(_against(measured, kv, base) for base in bases)]
    other, most = PAIR_GOALS.get(kv, ("", 0.0))
    if other in measured.sizes:
        found.append(_row(measured, kv, other, measured.times[other], most=most))
    return found


def _bandwidth_row(measured: Measured, kv: str) -> Row:
    size, copy = measured.sizes[kv], measured.bases["copy"]
    rate, copied = size / measured.times[kv], timing.COPY_BYTES / measured.times[copy]
    goal = COPY_GOALS.get((jax.default_backend(), measured.shape)) if kv in GOAL_KV else None
    return Row(
        part=measured.part,
        shape=measured.shape,
        what=kv,
        figure=rate / 1e9,
        unit="GB/s",
        ratio=rate / copied,
        least=goal,
        against=f"{copy}, {copied / 1e9:.4g} GB/s; {size / 1e6:.4g} MB must be read",
    )


def _against(measured: Measured, what: str, base: str) -> Row:
    form = measured.bases[base]
    goals = (goal.most for goal in GOALS if goal[:3] == _key(measured, base) and what in GOAL_KV)
    words = base if base == LIBRARY else f"{base} ({form.split(', ')[1]})"
    return _row(measured, what, words, measured.times[form], most=next(goals, None))


def _key(measured: Measured, base: str) -> tuple[str, str, str]:
    return jax.default_backend(), measured.shape, base


def _row(measured: Measured, what: str, base: str, seconds: float, *, most: float | None) -> Row:
    return Row(
        part=measured.part,
        shape=measured.shape,
        what=what,
        figure=1e3 * measured.times[what],
        unit="ms",
        ratio=measured.times[what] / seconds,
        most=most,
        against=f"{base}, {1e3 * seconds:.4g} ms",
    )


def turns(shape: AttentionShape) -> int:
    """Layers that take turns, as in a model, so that none is in a cache from the last time."""
    size = 2 * 2 * shape.batch * shape.tokens * shape.kv_heads * shape.head_dim  # in 16 bits
    return min(MOST_TURNS, -(-TURNS_BYTES[jax.default_backend()] // size))


def random_layer(shape: AttentionShape, seed: int) -> tuple[Array, Array]:
    """Keys and values of one layer."""
    size = (2, shape.batch, shape.tokens, shape.kv_heads, shape.head_dim)
    keys, values = jax.random.normal(jax.random.key(seed), size)
    return keys, values


def filled_cache(shape: AttentionShape, kv: str, layers: Layers) -> KVCache:
    """A cache that holds all tokens in every layer."""
    cache = make_cache(
        parse_spec(kv),
        layers=len(layers),
        capacity=shape.tokens,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        batch=shape.batch,
    )
    fill, piece = jax.jit(write, donate_argnums=0), min(PIECE, shape.tokens)
    counts = jnp.full(shape.batch, piece, jnp.int32)
    for start in range(0, shape.tokens, piece):
        for layer, pair in enumerate(layers):
            keys, values = (x[:, start : start + piece] for x in pair)
            cache = fill(cache, jnp.int32(layer), keys, values, counts)
        cache = advance(cache, counts)
    return cache


def packed_timer(shape: AttentionShape, cache: KVCache, q: Array, attend: Attend) -> timing.Timer:
    """Attention of one query token over the packed cache, layer after layer."""
    positions = jnp.full((shape.batch, 1), shape.tokens - 1, jnp.int32)
    layers = range(len(cache.layout.kind_of))
    arguments = [(q[:, None], positions, cache, jnp.int32(layer)) for layer in layers]
    return timing.in_turn(attend, arguments)


def plain_timers(layers: Layers, q: Array) -> dict[str, dict[str, timing.Timer]]:
    """The forms over each dtype that may be the fastest, and the library's."""
    return {dtype: _contenders(dtype, layers, q) for dtype in plain.DTYPES}


def _contenders(dtype: str, layers: Layers, q: Array) -> dict[str, timing.Timer]:
    """What takes far longer than the best in a few trials takes no more turns."""
    make = functools.partial(plain_timer, layers=layers, q=q)
    timers = {_plain_name(dtype, name): make(form) for name, form in plain.forms(dtype).items()}
    times = timing.interleaved(timers, TRIALS)
    library, (_, best) = _plain_name(dtype, plain.LIBRARY), timing.fastest(times, timers)
    return {
        name: timer
        for name, timer in timers.items()
        if name == library or times[name] <= CONTENDER * best
    }


def plain_timer(form: plain.Form, layers: Layers, q: Array) -> timing.Timer:
    """The same over plain arrays, one for each layer."""
    store = jax.jit(form.store)
    stored = [(q, store(keys), store(values)) for keys, values in layers]
    return timing.in_turn(form.attend, stored)
