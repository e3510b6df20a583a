"""Prefill against the machine's matmul rate, decoding against its copy bandwidth."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deltakv_jax.cache import KVCache, make_cache
from deltakv_jax.codec import parse_spec
from deltakv_jax.config import LlamaConfig
from deltakv_jax.generation.decode import decode
from deltakv_jax.generation.steps import prefill
from deltakv_jax.model import Llama
from scripts.bench import timing
from scripts.bench.results import Row
from scripts.bench.shapes import MODELS

KV = ("f16", "delta", "layered")
PROMPT = 512
HELD = 256
"""Tokens in the cache before the first timed decode step."""
STEPS = 8
"""Decode steps that are timed at once."""
PREFILL_ROUNDS, DECODE_ROUNDS = 5, 9
PREFILL_GOAL = DECODE_GOAL = 0.6


def prefill_rows() -> list[Row]:
    """A prompt of 512 tokens: the matmuls of the weights alone, over the matmul rate."""
    name = "llama_100m"
    model = random_model(MODELS[name])
    timers = {kv: prefill_timer(model, kv) for kv in KV}
    times = timing.interleaved({"matmul": timing.matmul_timer(), **timers}, PREFILL_ROUNDS)
    rate = timing.MATMUL_FLOPS / times["matmul"]
    return [_prefill_row(name, kv, times[kv], rate) for kv in KV]


def _prefill_row(name: str, kv: str, seconds: float, rate: float) -> Row:
    config = MODELS[name]
    flops, extra = weight_flops(config, PROMPT, logits=1), attention_flops(config, PROMPT)
    return Row(
        part="prefill",
        shape=name,
        what=kv,
        figure=flops / seconds / 1e9,
        unit="GFLOP/s",
        ratio=flops / seconds / rate,
        least=PREFILL_GOAL,
        against=f"matmul, {rate / 1e9:.4g} GFLOP/s; weights {flops / 1e9:.3g} GFLOP, attention "
        f"{extra / 1e9:.2g} not counted; {PROMPT / seconds:.4g} tok/s",
    )


def prefill_timer(model: Llama, kv: str) -> timing.Timer:
    """Feeds a prompt to an empty cache."""
    prompt = random_tokens(model.config, PROMPT)

    def once() -> float:
        cache = jax.block_until_ready(empty_cache(model.config, kv, PROMPT))
        return timing.timed(lambda: prefill(model, [prompt], cache))()

    return once


def weight_flops(config: LlamaConfig, tokens: int, *, logits: int) -> int:
    """Operations of the products with weights: the layers' for `tokens`, the head's for `logits`.

    A multiply-add is two.
    """
    attention = 2 * config.width * config.head_dim * (config.heads + config.kv_heads)
    layer = attention + 3 * config.width * config.ffn
    return 2 * (tokens * config.layers * layer + logits * config.vocab_size * config.width)


def attention_flops(config: LlamaConfig, tokens: int) -> int:
    """Operations of q.k and p.v of a causal prompt, what the mask hides left out."""
    pairs = tokens * (tokens + 1) // 2
    return 2 * 2 * config.layers * config.heads * config.head_dim * pairs


def decode_rows() -> list[Row]:
    """Steps of the compiled decode loop, batch 1: the weights' bytes over the copy bandwidth."""
    copies = timing.copy_timers()
    models = {name: random_model(config) for name, config in MODELS.items()}
    cases = {f"{name} {kv}": (name, kv) for name in MODELS for kv in KV}
    timers = {case: decode_timer(models[name], kv) for case, (name, kv) in cases.items()}
    times = timing.interleaved({**copies, **timers}, DECODE_ROUNDS)
    copy, seconds = timing.fastest(times, copies)
    return [
        _decode_row(name, kv, weight_bytes(models[name]), times[case], copy, seconds)
        for case, (name, kv) in cases.items()
    ]


def _decode_row(name: str, kv: str, size: int, seconds: float, copy: str, copied: float) -> Row:
    bandwidth = timing.COPY_BYTES / copied
    return Row(
        part="decode",
        shape=name,
        what=kv,
        figure=size / seconds / 1e9,
        unit="GB/s",
        ratio=size / seconds / bandwidth,
        least=DECODE_GOAL,
        against=f"{copy}, {bandwidth / 1e9:.4g} GB/s; weights {size / 1e6:.3g} MB, "
        f"{HELD} tokens held; {1 / seconds:.4g} tok/s",
    )


def decode_timer(model: Llama, kv: str) -> timing.Timer:
    """Goes on decoding from where it stopped; the seconds are those of one step."""
    tokens = STEPS * (DECODE_ROUNDS + 1)
    cache = empty_cache(model.config, kv, HELD + tokens)
    logits, cache = prefill(model, [random_tokens(model.config, HELD)], cache)

    def once() -> float:
        nonlocal cache
        # The last token drawn is not fed: one more token than steps.
        decoded = decode(model, logits, cache, max_new_tokens=STEPS + 1)
        cache = decoded.cache
        return decoded.seconds / STEPS

    return once


def weight_bytes(model: Llama) -> int:
    """Bytes of weights that a decode step reads: all, but of an untied embedding only a row."""
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    return size(model) - (0 if model.config.tied else size(model.embedding))


def random_model(config: LlamaConfig) -> Llama:
    """Random float32 weights."""
    return Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(0))


def empty_cache(config: LlamaConfig, kv: str, capacity: int) -> KVCache:
    """A cache for one sequence."""
    return make_cache(
        parse_spec(kv),
        layers=config.layers,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        capacity=capacity,
    )


def random_tokens(config: LlamaConfig, count: int) -> list[int]:
    """Any tokens: no figure depends on which."""
    return np.random.default_rng(0).integers(config.vocab_size, size=count).tolist()
