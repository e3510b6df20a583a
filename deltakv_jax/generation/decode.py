"""The decode loop: one compiled program from the prompt's logits to the last token.

A step feeds each sequence its token, draws the next one and hands it to the host. The number of
tokens is traced and the cache is donated, so one program serves every run of one shape.

Tokens leave the loop as they are drawn, by a callback that answers whether to go on. The loop
waits for the answer, which keeps the tokens in order without an ordered effect (those exist on one
device only). The callback does no more than queue them: Python that calls JAX from within a
program can deadlock, and the thread that waits for the tokens stays free for an interrupt.

On a mesh the whole loop runs on every device. One device of each process hands over the tokens of
all sequences, and the loop goes on only if every process says so.
"""

import concurrent.futures
import dataclasses
import enum
import functools
import itertools
import queue
import time
from collections.abc import Callable, Collection
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float32, Int32, Key

from deltakv_jax.attention import Implementation
from deltakv_jax.cache import KVCache
from deltakv_jax.generation.sampling import GREEDY, Sampling, sample, sequence_keys
from deltakv_jax.generation.steps import next_logits
from deltakv_jax.model import Llama
from deltakv_jax.parallel.collectives import (
    collectives_on,
    join_sequences,
    on_any_device,
    speaks,
    spread,
)
from deltakv_jax.parallel.placement import put, to_host
from deltakv_jax.parallel.sharding import BATCH, WHOLE, cache_specs, model_specs
from deltakv_jax.typed import typed

Step = list[int | None]
"""The token of each sequence in one step, None where it drew none."""

_NONE = -1  # what stands for None on the device


class Stop(enum.IntEnum):
    """Why a sequence ended."""

    RUNNING = 0  # it did not
    EOS = 1  # it drew a token that ends it
    LIMIT = 2  # it has as many new tokens as were asked for
    CACHE_FULL = 3  # its last token has no place left
    NON_FINITE = 4  # its logits hold a NaN or an infinity


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What a decode loop made.

    Attributes:
      tokens: of each sequence, without the one that ends it.
      stops: why each sequence ended.
      cache: holds what was fed: the last token that a sequence drew is not in it.
      seconds: that the program ran, compilation excluded.
    """

    tokens: list[list[int]]
    stops: list[Stop]
    cache: KVCache
    seconds: float


def decode(
    model: Llama,
    logits: Array,
    cache: KVCache,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    keys: Array | None = None,
    eos_ids: Collection[int] = (),
    on_step: Callable[[Step], object] = lambda step: None,
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> Decoded:
    """Draws tokens until every sequence has met its end, the limit or a full cache.

    Args:
      model: the model.
      logits: float32 [b v], of each sequence's last token, as `prefill` returns them.
      cache: as `prefill` returns it; donated.
      max_new_tokens: the limit of each sequence.
      sampling: how tokens are drawn.
      keys: random keys [b]; those of seed 0 if None.
      eos_ids: tokens that end a sequence.
      on_step: called in this thread with the tokens of each step as they are made. What it raises
        ends the loop and is raised here; the cache is lost then.
      mesh: the devices that share model and cache.
      implementation: of attention.
    """
    keys = put(mesh, BATCH, sequence_keys(0, len(logits)) if keys is None else keys)
    eos, limit = np.array(sorted(eos_ids), np.int32), np.int32(max_new_tokens)
    tokens: list[list[int]] = [[] for _ in range(len(logits))]

    def take(step: Step) -> None:
        for row, token in zip(tokens, step, strict=True):
            row.extend([] if token is None else [token])
        on_step(step)

    with _Channel() as channel:
        arguments = (model, logits, cache, keys, sampling, eos, limit, channel.number)
        static = {"mesh": mesh, "implementation": implementation}
        program = decode_loop.lower(*arguments, **static).compile()
        (stops, cache), seconds = channel.follow(lambda: _timed(program, arguments), take)
    return Decoded(tokens, [Stop(stop) for stop in to_host(stops).tolist()], cache, seconds)


def _timed(program: Callable, arguments: tuple) -> tuple[tuple[Array, KVCache], float]:
    start = time.perf_counter()
    result = jax.block_until_ready(program(*arguments))
    return result, time.perf_counter() - start


class _State(NamedTuple):
    """What the loop carries: draws made, last tokens [b], stops [b], whether to go on, cache."""

    step: Array
    tokens: Array
    stops: Array
    more: Array
    cache: KVCache


@functools.partial(jax.jit, static_argnames=("mesh", "implementation"), donate_argnames="cache")
@typed
def decode_loop(
    model: Llama,
    logits: Float32[Array, "b v"],
    cache: KVCache,
    keys: Key[Array, " b"],
    sampling: Sampling,
    eos: Int32[Array, " e"],
    limit: Int32[Array, ""],
    channel: Int32[Array, ""],
    *,
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> tuple[Int32[Array, " b"], KVCache]:
    """The loop itself: the `Stop` of each sequence and the cache (donated).

    The last token drawn is not fed, since nothing would read its logits.
    """
    cached = cache_specs(cache)
    inputs = (model_specs(model), BATCH, cached, BATCH, WHOLE, WHOLE, WHOLE, WHOLE)
    loop = functools.partial(_loop, mesh=mesh, implementation=implementation)
    return spread(mesh, loop, inputs, (WHOLE, cached))(
        model, logits, cache, keys, sampling, eos, limit, channel
    )


def _loop(
    model: Llama,
    logits: Array,
    cache: KVCache,
    keys: Array,
    sampling: Sampling,
    eos: Array,
    limit: Array,
    channel: Array,
    *,
    mesh: Mesh | None,
    implementation: Implementation | None,
) -> tuple[Array, KVCache]:
    """`decode_loop` on one device, over its sequences; the stops are those of all."""
    feed = functools.partial(
        next_logits, collectives=collectives_on(mesh), implementation=implementation
    )

    def draw(step: Array, logits: Array, stops: Array, cache: KVCache) -> _State:
        tokens = sample(logits, keys, step, sampling)
        running = stops == Stop.RUNNING
        met = _met(tokens, logits, step + 1 >= limit, cache, eos)
        drew = running & (met != Stop.EOS) & (met != Stop.NON_FINITE)
        stops = jnp.where(running, met, stops)
        go_on = _hand_over(channel, join_sequences(mesh, jnp.where(drew, tokens, _NONE)), mesh)
        flags = jnp.stack([jnp.any(stops == Stop.RUNNING), ~go_on])
        alive, stopped = on_any_device(mesh, flags)
        return _State(step + 1, tokens, stops, alive & ~stopped, cache)

    def feed_and_draw(state: _State) -> _State:
        running = state.stops == Stop.RUNNING
        logits, cache = feed(model, state.tokens, running, state.cache)
        return draw(state.step, logits, state.stops, cache)

    begun = jnp.where(limit > 0, Stop.RUNNING, Stop.LIMIT)
    state = draw(jnp.int32(0), logits, jnp.full(len(logits), begun, jnp.int32), cache)
    state = jax.lax.while_loop(lambda state: state.more, feed_and_draw, state)
    return join_sequences(mesh, state.stops), state.cache


@typed
def _met(
    tokens: Int32[Array, " b"],
    logits: Float32[Array, "b v"],
    at_limit: Bool[Array, ""],
    cache: KVCache,
    eos: Int32[Array, " e"],
) -> Int32[Array, " b"]:
    """The `Stop` that each sequence has met with these tokens, the gravest first."""
    largest = jnp.max(logits, axis=-1)  # a NaN wins; a single -inf may be meant
    reasons = {
        Stop.NON_FINITE: ~jnp.isfinite(largest),
        Stop.EOS: jnp.any(tokens[:, None] == eos, axis=-1),
        Stop.LIMIT: jnp.broadcast_to(at_limit, tokens.shape),
        Stop.CACHE_FULL: cache.lengths >= cache.capacity,
    }
    return jnp.select(list(reasons.values()), [jnp.int32(stop) for stop in reasons], Stop.RUNNING)


def _hand_over(channel: Array, tokens: Array, mesh: Mesh | None) -> Array:
    """Gives the tokens of this step to the host; a bool, whether to go on."""
    call = lambda: io_callback(_receive, jax.ShapeDtypeStruct((), bool), channel, tokens)
    if mesh is None:
        return call()
    return jax.lax.cond(speaks(mesh), call, lambda: jnp.array(True))


def _receive(number: Array, tokens: Array) -> np.ndarray:
    channel = _Channel.by_number[int(number)]
    drawn = np.asarray(tokens).tolist()
    channel.steps.put([None if token == _NONE else token for token in drawn])
    return np.array(not channel.stopped)


class _Channel:
    """Carries the steps of a running program to the thread that waits for them.

    A program finds its channel by number: a function of its own would be a program of its own.
    """

    by_number: ClassVar[dict[int, "_Channel"]] = {}
    _numbers = itertools.count()

    def __init__(self):
        self.number = np.int32(next(self._numbers))
        self.steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self.stopped = False

    def __enter__(self) -> "_Channel":
        self.by_number[int(self.number)] = self
        return self

    def __exit__(self, *error) -> None:
        del self.by_number[int(self.number)]

    def follow(self, run: Callable, take: Callable[[Step], None]):
        """The result of `run`, done in another thread while this one takes the steps."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(run)
            running.add_done_callback(lambda _: self.steps.put(None))
            try:
                for step in iter(self.steps.get, None):
                    take(step)
            finally:
                self.stopped = True
        return running.result()
