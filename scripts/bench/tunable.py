"""What `tune.py` tries for each kernel: shapes, rows of its table, and how a row is timed."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from deltakv_pallas import cases
from deltakv_pallas.cases import Case
from deltakv_pallas.matvec import bytes_read
from deltakv_pallas.matvec_tuning import Tuning as MatvecTuning
from deltakv_pallas.matvec_tuning import matvec_tuning
from deltakv_pallas.tuning import Tuning, decode_tuning
from scripts.bench import matvec_speed, random_leaves, timing

Shape = tuple[Any, ...]
"""The format, and numbers."""

MakeTimer = Callable[[Any], timing.Timer]

CALLS = 64
"""Products that are timed at once."""


@dataclasses.dataclass(frozen=True)
class Tunable:
    """A kernel.

    Attributes:
      shapes: that rows are made for.
      general: the row of a device, by its kind, that fits every shape.
      rows: what is tried, given that row.
      keys: the fields by which the table finds a row, given a shape.
      case: a call that compiles, given a shape and a row.
      timers: of a call on the device that is here, given a shape and then a row.
      work: units of work of a turn of the loop, given a row, to which instructions are compared.
    """

    shapes: Callable[[], Iterable[Shape]]
    general: Callable[[str], Any]
    rows: Callable[[Any], Iterator[Any]]
    keys: Callable[[Shape], dict[str, Any]]
    case: Callable[..., Case]
    timers: Callable[[Shape], MakeTimer]
    work: Callable[[Any], float]


def _decode_rows(general: Tuning) -> Iterator[Tuning]:
    stages = range(1, general.stages + 1)
    for tile, warps, ahead in itertools.product((16, 32, 64), (1, 2, 4, 8), stages):
        yield dataclasses.replace(general, tile=tile, warps=warps, stages=ahead)


def _decode_timers(shape: Shape) -> MakeTimer:
    """Over a cache of zeros, which take as long to read as any."""
    arguments = cases.decode_case(*shape).arguments
    q, positions, cache, _ = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), arguments)
    whole, layers = positions + cache.capacity - 1, range(len(cache.layout.kind_of))
    calls = [(q, whole, cache, jnp.int32(layer)) for layer in layers]

    def timer(row: Tuning) -> timing.Timer:
        return timing.in_turn(cases.decode_case(*shape, tuning=row).function, calls)

    return timer


def _matvec_rows(general: MatvecTuning) -> Iterator[MatvecTuning]:
    tried = itertools.product((4, 8), (1, 2, 4), (1, 2), (2, 4))
    for bytes_, passes, quads, warps in tried:
        yield dataclasses.replace(general, bytes=bytes_, passes=passes, quads=quads, warps=warps)


def _matvec_timers(shape: Shape) -> MakeTimer:
    """Over the layers of a stack that no cache holds."""
    name, rows, values, batch = shape
    layers = matvec_speed.layers_of(bytes_read(matvec_speed.blocks_of(name), rows, values))
    matrix = random_leaves.random_matrix(name, layers, rows, values=values)
    sizes = (layers, batch, rows, values)

    def timer(row: MatvecTuning) -> timing.Timer:
        product = cases.matvec_case(*shape, tuning=row).function
        return matvec_speed.loop_timer(product, matrix.arrays(), sizes, max(layers, CALLS))

    return timer


TUNABLE = {
    "decode": Tunable(
        shapes=cases.decode_shapes,
        general=lambda device: decode_tuning(device, "", 0, 0),
        rows=_decode_rows,
        keys=lambda shape: dict(zip(("spec", "head_dim", "heads"), shape, strict=True)),
        case=cases.decode_case,
        timers=_decode_timers,
        work=lambda row: row.tile / row.warps,
    ),
    "matvec": Tunable(
        shapes=lambda: (shape for shape in cases.matvec_shapes() if shape[-1] == 1),
        general=lambda device: matvec_tuning(device, "", 0, 0),
        rows=_matvec_rows,
        keys=lambda shape: dict(zip(("format", "rows", "values"), shape[:3], strict=True)),
        case=cases.matvec_case,
        timers=_matvec_timers,
        work=lambda row: row.bytes * row.passes * row.quads,
    ),
}
"""By the names of `cases.CASES`."""
