"""Steps of a model over a KV cache: new tokens in, logits and the next cache out.

Every step donates its cache: the one passed in is gone, the one returned takes its place. Prompts
go in pieces of a few lengths, so that prompts of any length need a few compilations.

Given a mesh, a step runs on each of its devices over the parts of model and cache that lie there.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float32, Int32

from deltakv_jax.attention import Implementation, attend
from deltakv_jax.cache import KVCache, Sides, advance, make_cache
from deltakv_jax.calibration import Calibration
from deltakv_jax.codec import CacheSpec, KVSpec, LayerSpecs
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.model import ONE_DEVICE, Collectives, Llama
from deltakv_jax.parallel.collectives import AnyMesh, collectives_on, spread
from deltakv_jax.parallel.placement import make_on, put, to_host
from deltakv_jax.parallel.sharding import BATCH, cache_specs, model_specs
from deltakv_jax.typed import typed

PIECES = (32, 64, 128, 256, 512)
"""Tokens that a program of `prefill` takes: less than half of a piece is padding, above 32."""


def empty_cache(
    config: LlamaConfig,
    spec: CacheSpec | Sequence[KVSpec],
    *,
    capacity: int,
    batch: int = 1,
    mesh: Mesh | None = None,
    calibration: Calibration | None = None,
) -> KVCache:
    """An empty cache for a model of this config.

    Args:
      config: the model's sizes.
      spec: the format of all layers, or of each.
      capacity: tokens per sequence.
      batch: number of sequences.
      mesh: the devices over which the cache lies.
      calibration: has the means for formats that take them off; without it they are zero.

    Raises:
      UserError: as `make_cache` does, or where the calibration is of another model.
    """
    if calibration is not None:
        calibration.check_sizes(config)
    make = functools.partial(
        cache_for,
        config,
        spec,
        capacity=capacity,
        batch=batch,
        centre=None if calibration is None else calibration.centre,
    )
    return make_on(mesh, make)


def cache_for(
    config: LlamaConfig,
    spec: CacheSpec | Sequence[KVSpec],
    *,
    capacity: int,
    batch: int,
    centre: Sides | None,
) -> KVCache:
    """`make_cache` for a model of this config, inside of a program too."""
    return make_cache(
        spec.layers if isinstance(spec, LayerSpecs) else spec,
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        capacity=capacity,
        batch=batch,
        centre=centre,
    )


@typed
def forward(
    model: Llama,
    tokens: Int32[Array, "b t"],
    counts: Int32[Array, " b"],
    cache: KVCache,
    attend: Callable[..., tuple[Array, KVCache]] = attend,
    collectives: Collectives = ONE_DEVICE,
) -> tuple[Float32[Array, "b t w"], KVCache]:
    """Runs the model over the first `counts` of `tokens` of each sequence; the rest is padding.

    Args:
      model: the model.
      tokens: of each sequence.
      counts: tokens of each sequence that are not padding.
      cache: holds what came before them.
      attend: takes the arguments of `attention.attend`, which it is by default.
      collectives: of the devices that share the model.

    Returns:
      The hidden states after the final norm (those of padding mean nothing), and the cache with
      the tokens written. A sequence of count 0 is left as it is.
    """
    positions = cache.lengths[:, None] + jnp.arange(tokens.shape[1])
    counted = functools.partial(attend, counts=counts)
    hidden, cache = model.hidden(tokens, positions, cache, attend=counted, collectives=collectives)
    return hidden, advance(cache, counts)


@functools.partial(jax.jit, static_argnames=("mesh", "implementation"), donate_argnames="cache")
@typed
def decode_step(
    model: Llama,
    tokens: Int32[Array, " b"],
    cache: KVCache,
    *,
    mesh: AnyMesh | None = None,
    implementation: Implementation | None = None,
) -> tuple[Float32[Array, "b v"], KVCache]:
    """Feeds one token to each sequence: the logits of the next one, and the cache (donated)."""

    def step(model: Llama, tokens: Array, cache: KVCache) -> tuple[Array, KVCache]:
        live = jnp.ones(tokens.shape, bool)
        return next_logits(model, tokens, live, cache, collectives_on(mesh), implementation)

    cached = cache_specs(cache)
    inputs, outputs = (model_specs(model), BATCH, cached), (BATCH, cached)
    return spread(mesh, step, inputs, outputs)(model, tokens, cache)


@typed
def next_logits(
    model: Llama,
    tokens: Int32[Array, " b"],
    live: Bool[Array, " b"],
    cache: KVCache,
    collectives: Collectives = ONE_DEVICE,
    implementation: Implementation | None = None,
) -> tuple[Float32[Array, "b v"], KVCache]:
    """Feeds one token to each sequence that is `live`; the logits of the others mean nothing."""
    counts = live.astype(jnp.int32)
    reader = functools.partial(attend, implementation=implementation)
    hidden, cache = forward(model, tokens[:, None], counts, cache, reader, collectives)
    return model.logits(hidden[:, 0], collectives), cache


def prefill(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    cache: KVCache,
    *,
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> tuple[Array, KVCache]:
    """Appends a prompt to each sequence of the cache, whatever their lengths.

    Args:
      model: the model.
      prompts: token ids, one non-empty list per sequence.
      cache: holds whatever came before the prompts; donated.
      mesh: the devices that share model and cache.
      implementation: of attention.

    Returns:
      The logits [b v], float32, of each prompt's last token, and the cache.

    Raises:
      UserError: where a prompt is empty or does not fit the cache.
    """
    check_fit(prompts, cache)
    logits = _no_logits(model, prompts, mesh)
    for tokens, counts in pieces(prompts):
        logits, cache = prefill_piece(
            model, tokens, counts, logits, cache, mesh=mesh, implementation=implementation
        )
    return logits, cache


@functools.partial(
    jax.jit, static_argnames=("mesh", "implementation"), donate_argnames=("logits", "cache")
)
@typed
def prefill_piece(
    model: Llama,
    tokens: Int32[Array, "b t"],
    counts: Int32[Array, " b"],
    logits: Float32[Array, "b v"],
    cache: KVCache,
    *,
    mesh: AnyMesh | None = None,
    implementation: Implementation | None = None,
) -> tuple[Float32[Array, "b v"], KVCache]:
    """Feeds the first `counts` of `tokens`; `logits` stay those of each sequence's last token."""
    on = collectives_on(mesh)

    def piece(model, tokens, counts, logits, cache):
        reader = functools.partial(attend, implementation=implementation)
        hidden, cache = forward(model, tokens, counts, cache, reader, on)
        last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)[:, 0]
        return jnp.where(counts[:, None] > 0, model.logits(last, on), logits), cache

    cached = cache_specs(cache)
    inputs, outputs = (model_specs(model), BATCH, BATCH, BATCH, cached), (BATCH, cached)
    return spread(mesh, piece, inputs, outputs)(model, tokens, counts, logits, cache)


def compile_prefill(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    cache: KVCache,
    *,
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> None:
    """Compiles what `prefill` with these arguments runs, so that it can be timed."""
    logits = _no_logits(model, prompts, mesh)
    for tokens, counts in {piece[0].shape: piece for piece in pieces(prompts)}.values():
        prefill_piece.lower(
            model, tokens, counts, logits, cache, mesh=mesh, implementation=implementation
        ).compile()


def _no_logits(model: Llama, prompts: Sequence[Sequence[int]], mesh: Mesh | None) -> Array:
    return put(mesh, BATCH, np.zeros((len(prompts), model.config.vocab_size), np.float32))


def pieces(prompts: Sequence[Sequence[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompts as int32 tokens [b t] and counts [b], piece by piece, t out of `PIECES`."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    out, start = [], 0
    while start < lengths.max():
        size = piece_length(int(lengths.max()) - start)
        tokens = np.zeros((len(prompts), size), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            part = prompt[start : start + size]
            row[: len(part)] = part
        out.append((tokens, np.clip(lengths - start, 0, size, dtype=np.int32)))
        start += size
    return out


def piece_length(rest: int) -> int:
    """The shortest piece that holds `rest` tokens, or else the longest."""
    return next((size for size in PIECES if size >= rest), PIECES[-1])


def check_fit(prompts: Sequence[Sequence[int]], cache: KVCache) -> None:
    """Raises UserError unless there is one prompt per sequence, not empty, that fits its room."""
    held = to_host(cache.lengths)
    if len(prompts) != len(held):
        raise UserError(f"{len(prompts)} prompts for a cache of {len(held)} sequences")
    for number, (prompt, before) in enumerate(zip(prompts, held.tolist(), strict=True), 1):
        if not prompt:
            raise UserError(f"prompt {number} is empty, expected at least one token")
        if before + len(prompt) > cache.capacity:
            after = f" after the {before} that it holds" if before else ""
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens, but the cache has room for "
                f"{cache.capacity - before}{after}"
            )
