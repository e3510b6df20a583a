"""Timing in one run: candidates take turns, and the machine's own rates are among them.

A timer is a function that does its work once and returns the seconds that it took.
"""

import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

Timer = Callable[[], float]

MATMUL_SIZE = 2048
MATMUL_FLOPS = 2 * MATMUL_SIZE**3
WARM_UP = 0.5
"""Seconds in which the clock of a GPU rises from idle."""
GPU_CALLS = 16
"""Calls that are timed at once on a GPU, at least."""
COPY_BYTES = 2 * 2**30
"""What copying an array of 1 GiB reads and writes."""


def timed(work: Callable[[], object]) -> Timer:
    """The timer of `work`, until all arrays that it returns are there."""

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(work())
        return time.perf_counter() - start

    return once


def in_turn(function: Callable[..., jax.Array], arguments: Sequence[tuple]) -> Timer:
    """The timer of one call of `function`; the arguments of each call take turns.

    A GPU is given all of them in one program, several times: a call by itself would be lost in the
    time that its launch takes.
    """
    if jax.default_backend() == "cpu":
        compiled, turn = jax.jit(function), itertools.cycle(arguments)
        return timed(lambda: compiled(*next(turn)))
    together = jax.jit(lambda arguments: sum(function(*one) for one in arguments))
    rounds = -(-GPU_CALLS // len(arguments))
    timer = timed(lambda: [together(arguments) for _ in range(rounds)])
    return lambda: timer() / (rounds * len(arguments))


def interleaved(timers: Mapping[str, Timer], repetitions: int) -> dict[str, float]:
    """The median seconds of each timer, all in turn, after one round that is not counted.

    Each round has an order of its own: what one leaves in the processor's caches would otherwise
    always be at the expense of the same other.
    """
    _warm_up(timers)
    shuffle = random.Random(0)
    rounds = []
    for _ in range(repetitions + 1):
        order = shuffle.sample(list(timers), len(timers))
        rounds.append({name: timers[name]() for name in order})
    return {name: statistics.median(seconds[name] for seconds in rounds[1:]) for name in timers}


def _warm_up(timers: Mapping[str, Timer]) -> None:
    """Keeps a GPU at work until its clock has risen; what is compiled first does not count."""
    if jax.default_backend() == "cpu":
        return
    for timer in timers.values():
        timer()
    end = time.perf_counter() + WARM_UP
    while time.perf_counter() < end:
        for timer in timers.values():
            timer()


def matmul_timer() -> Timer:
    """A product of float32 matrices of `MATMUL_SIZE`, without TF32: the machine's own rate."""
    a, b = jax.random.normal(jax.random.key(0), (2, MATMUL_SIZE, MATMUL_SIZE))
    product = jax.jit(partial(jnp.matmul, precision="highest"))
    return timed(lambda: product(a, b))


def copy_timers() -> dict[str, Timer]:
    """Copies of 1 GiB into a buffer that is there already; the fastest is the machine's own.

    A copy into new memory would also pay for its pages, which the kernel clears.
    """
    if jax.default_backend() != "cpu":
        return {"device copy": _device_copy()}
    source, target = np.ones(2**28, np.float32), np.zeros(2**28, np.float32)
    threads = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(threads)
    targets, sources = (np.array_split(array, threads) for array in (target, source))
    return {
        "copy by 1 thread": timed(lambda: np.copyto(target, source)),
        f"copy by all {threads} threads": timed(
            lambda: list(pool.map(np.copyto, targets, sources))
        ),
    }


def _device_copy() -> Timer:
    source, target = jnp.ones(2**28, jnp.float32), jnp.zeros(2**28, jnp.float32)
    copy = jax.jit(lambda target, source: target.at[:].set(source), donate_argnums=0)

    def step() -> jax.Array:
        nonlocal target
        target = copy(target, source)
        return target

    return timed(step)


def fastest(times: Mapping[str, float], names: Mapping[str, object]) -> tuple[str, float]:
    """The name and the seconds of the fastest of `names`."""
    name = min(names, key=lambda name: times[name])
    return name, times[name]
