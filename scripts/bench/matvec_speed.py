"""Products of packed matrices with a few vectors: against copying, XLA's, and a bfloat16 matrix."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.codec.matrices import MATRICES as FORMATS
from deltakv_jax.codec.matrix import Blocks
from deltakv_jax.linear import Stack, multiplied_by
from deltakv_jax.linear.kernel import Implementation
from deltakv_pallas.matvec import bytes_read
from scripts.bench import random_leaves, timing
from scripts.bench.results import Row
from scripts.bench.shapes import MATRICES

KINDS = tuple(name for name, form in FORMATS.items() if isinstance(form, Blocks))
DENSE = "bf16"
ROUNDS = 15
STACK_BYTES, MOST_TURNS = 2**29, 64
CALLS = {"cpu": 1, "gpu": 64}
"""Products that are timed at once, at least; layers take turns."""

GOAL_KIND = "q4_0"
COPY_GOALS = {("gpu", shape): 0.75 for shape in ("llama3_70b_gate", "llama3_70b_down")}


Product = Callable[[Any, Array, Array], Array]


class Measured(NamedTuple):
    """One run at one shape.

    Attributes:
      part: what rows say that they are part of.
      shape: its name.
      times: seconds of a product of each kind, and of copies.
      sizes: bytes that a product must read.
      copy: the fastest of the copies.
    """

    part: str
    shape: str
    times: Mapping[str, float]
    sizes: Mapping[str, int]
    copy: str


def rows(
    name: str, kinds: Sequence[str], implementation: Implementation | None, batch: int
) -> list[Row]:
    """Every kind against copying, against XLA and against bfloat16."""
    measured = measure(name, kinds, implementation, batch)
    found = [_bandwidth_row(measured, DENSE)]
    for kind in kinds:
        found += [_bandwidth_row(measured, kind), *_time_rows(measured, kind)]
    return found


def measure(
    name: str, kinds: Sequence[str], implementation: Implementation | None, batch: int
) -> Measured:
    """Times copies, the dense matrix, and each kind by kernel and by XLA, in turn."""
    shape, copies, least = MATRICES[name], timing.copy_timers(), CALLS[jax.default_backend()]
    timers = {DENSE: product_timer(_dense(*shape), shape, batch, least)}
    sizes = {DENSE: 2 * shape[0] * shape[1]}
    for kind in kinds:
        stack = _packed(kind, *shape)
        sizes[kind] = bytes_read(blocks_of(kind), *shape)
        timers[kind] = product_timer(multiplied_by(stack, implementation), shape, batch, least)
        timers[_by_xla(kind)] = product_timer(multiplied_by(stack, "xla"), shape, batch)
    times = timing.interleaved({**copies, **timers}, ROUNDS)
    part = f"matvec by {implementation or 'default'}, batch {batch}"
    return Measured(part, name, times, sizes, timing.fastest(times, copies)[0])


def product_timer(stack: Stack, shape: tuple[int, int], batch: int, least: int = 1) -> timing.Timer:
    """The seconds of one product, out of a compiled loop over the layers of a stack.

    Args:
      stack: of one kind.
      shape: rows and values of a row of each matrix.
      batch: vectors.
      least: products of the loop, at least.
    """
    layers = jax.tree.leaves(stack)[0].shape[0]
    product = lambda stack, x, layer: stack.product(x, layer)
    return loop_timer(product, stack, (layers, batch, *shape), max(layers, least))


def loop_timer(
    product: Product, weights: Any, sizes: tuple[int, int, int, int], calls: int
) -> timing.Timer:
    """The seconds of one of so many products in a compiled loop; each layer has its own vectors.

    Args:
      product: (weights, x [b, n], layer) -> [b, m].
      weights: what it takes.
      sizes: layers, vectors, rows and values of a row.
      calls: products of the loop.
    """
    layers, batch, rows, values = sizes
    xs = jax.random.normal(jax.random.key(1), (layers, batch, values))

    @jax.jit
    def loop(weights: Any, xs: Array) -> Array:
        one = lambda i, _: product(weights, xs[i % layers], i % layers)
        return jax.lax.fori_loop(0, calls, one, jnp.zeros((batch, rows)))

    timer = timing.timed(lambda: loop(weights, xs))
    return lambda: timer() / calls


def layers_of(size: int) -> int:
    """Layers that take turns, so that none is in a cache from the last time."""
    return max(2, min(MOST_TURNS, -(-STACK_BYTES // size)))


def _packed(kind: str, rows: int, values: int) -> Stack:
    layers = layers_of(bytes_read(blocks_of(kind), rows, values))
    return Stack([random_leaves.random_matrix(kind, layers, rows, values=values)])


def _dense(rows: int, values: int) -> Stack:
    layers = layers_of(2 * rows * values)
    shape = jax.ShapeDtypeStruct((layers, rows, values), jnp.bfloat16)
    return Stack([random_leaves.random_array(random_leaves.random_key(0), shape, values**-0.5)])


def blocks_of(kind: str) -> Blocks:
    """The format of this name."""
    form = FORMATS[kind]
    if not isinstance(form, Blocks):
        raise TypeError(f"{kind} is not stored in blocks")
    return form


def _by_xla(kind: str) -> str:
    return f"{kind} by xla"


def _bandwidth_row(measured: Measured, kind: str) -> Row:
    size = measured.sizes[kind]
    rate = size / measured.times[kind]
    copied = timing.COPY_BYTES / measured.times[measured.copy]
    goal = COPY_GOALS.get((jax.default_backend(), measured.shape)) if kind == GOAL_KIND else None
    return Row(
        part=measured.part if kind != DENSE else "matvec, dense",
        shape=measured.shape,
        what=kind,
        figure=rate / 1e9,
        unit="GB/s",
        ratio=rate / copied,
        least=goal,
        against=f"{measured.copy}, {copied / 1e9:.4g} GB/s; {size / 1e6:.4g} MB must be read",
    )


def _time_rows(measured: Measured, kind: str) -> list[Row]:
    return [_time_row(measured, kind, other) for other in (_by_xla(kind), DENSE)]


def _time_row(measured: Measured, kind: str, other: str) -> Row:
    seconds = measured.times[other]
    return Row(
        part=measured.part,
        shape=measured.shape,
        what=kind,
        figure=1e6 * measured.times[kind],
        unit="µs",
        ratio=measured.times[kind] / seconds,
        against=f"{other}, {1e6 * seconds:.4g} µs",
    )
