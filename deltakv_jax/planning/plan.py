"""A plan: what each device of a mesh holds, what fits there, and how fast a step can be at best."""

import dataclasses
from collections.abc import Callable

from jax.sharding import Mesh

from deltakv_jax.codec import KVSpec
from deltakv_jax.parallel.sharding import DATA, TENSOR
from deltakv_jax.planning import hlo, programs
from deltakv_jax.planning.by_hand import HandCount, hand_count
from deltakv_jax.planning.devices import Device
from deltakv_jax.planning.models import Planned, stored_as
from deltakv_jax.planning.programs import Shapes

MOST = 2**31 - 1  # positions are int32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is planned.

    Attributes:
      planned: the model.
      mesh: devices of this process of which the mesh is made, or None for a single one.
      device: what each of them stands for.
      memory: bytes of each, or None where that is not known.
      ctx: tokens per sequence that the cache has room for.
      batch: sequences.
    """

    planned: Planned
    mesh: Mesh | None
    device: Device
    memory: int | None
    ctx: int
    batch: int

    def shapes(self, spec: KVSpec, *, ctx: int | None = None, batch: int | None = None) -> Shapes:
        """What a step takes in; by default with as many tokens and sequences as are planned."""
        ctx, batch = ctx or self.ctx, batch or self.batch
        return programs.make_shapes(self.planned.model, spec, self.mesh, ctx=ctx, batch=batch)

    def axis(self, name: str) -> int:
        """Devices along an axis of the mesh."""
        return 1 if self.mesh is None else self.mesh.shape[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one cache format takes on each device; everything is in bytes.

    Attributes:
      kv: the format.
      weight_bytes: of weights, exact.
      cache_bytes: of the cache with room for all tokens, exact.
      argument_bytes: what the compiled decode step takes in: both, tokens and lengths.
      by_hand: weights and cache counted from the config alone; None where the matrices are not
        all stored alike.
      decode_scratch: what the compiled decode step needs besides weights and cache.
      prefill_scratch: the same of a piece of a prompt.
      largest_context: tokens per sequence that fit, 0 where not even one does; None where the
        memory is not known.
      largest_batch: sequences that fit, likewise.
      read_bytes: what a decode step must read: the cache, and the weights but for an embedding of
        which it takes a few rows.
      tokens_per_second: of all sequences, if a step took as long as that reading; None where the
        device's bandwidth is not known.
      collectives: of a decode step.
      lowered: how often collectives and custom calls stand in the step lowered for the device;
        None for a CPU, which the step is compiled for.
    """

    kv: str
    weight_bytes: int
    cache_bytes: int
    argument_bytes: int
    by_hand: HandCount | None
    decode_scratch: int
    prefill_scratch: int
    largest_context: int | None
    largest_batch: int | None
    read_bytes: int
    tokens_per_second: float | None
    collectives: list[hlo.Collective]
    lowered: dict[str, int] | None

    @property
    def scratch(self) -> int:
        """What the needier of the two programs needs besides weights and cache."""
        return max(self.decode_scratch, self.prefill_scratch)

    @property
    def total_bytes(self) -> int:
        """Weights, cache and scratch."""
        return self.weight_bytes + self.cache_bytes + self.scratch


def make_plan(run: Run, spec: KVSpec) -> Plan:
    """Plans a run with the cache in this format: compiles two programs, and allocates nothing."""
    shapes = run.shapes(spec)
    weights, cache = programs.device_bytes(shapes.model), cache_bytes(shapes)
    decode, prefill = programs.compile_decode(shapes), programs.compile_prefill(shapes)
    scratch = [program.bytes - weights - cache for program in (decode, prefill)]
    read = read_bytes(shapes)
    return Plan(
        kv=str(spec),
        weight_bytes=weights,
        cache_bytes=cache,
        argument_bytes=decode.argument_bytes,
        by_hand=_by_hand(run, spec),
        decode_scratch=scratch[0],
        prefill_scratch=scratch[1],
        largest_context=largest_context(run, spec, weights + max(scratch)),
        largest_batch=largest_batch(run, spec, weights, max(scratch)),
        read_bytes=read,
        tokens_per_second=run.device.bandwidth and run.batch * run.device.bandwidth / read,
        collectives=decode.collectives,
        lowered=_lowered(run, spec),
    )


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest number up to `most` that fits, where every smaller one does; 0 if none does."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_context(run: Run, spec: KVSpec, taken: int) -> int | None:
    """Tokens per sequence for which the cache fits beside what is taken; None without a memory.

    The scratch does not grow with them: attention reads the cache tile by tile.
    """
    if (memory := run.memory) is None:
        return None
    return largest(lambda ctx: taken + cache_bytes(run.shapes(spec, ctx=ctx)) <= memory)


def largest_batch(run: Run, spec: KVSpec, weights: int, scratch: int) -> int | None:
    """Sequences for which cache and scratch fit beside the weights; None without a memory.

    The scratch is taken to be in proportion to them, which not all of it is: more may fit.
    """
    if (memory := run.memory) is None:
        return None
    rows = run.axis(DATA)

    def fits(count: int) -> bool:
        batch = count * rows
        needed = scratch * max(1, batch / run.batch)
        return weights + needed + cache_bytes(run.shapes(spec, batch=batch)) <= memory

    return rows * largest(fits, MOST // rows)


def cache_bytes(shapes: Shapes) -> int:
    """Bytes of the cache on each device, all leaves but the lengths."""
    return programs.device_bytes(shapes.cache.stacks)


def read_bytes(shapes: Shapes) -> int:
    """Bytes that a decode step must read on each device: all but an embedding that is no head."""
    model = shapes.model
    rows_only = None if model.head is None else model.embedding
    return programs.device_bytes(model) - programs.device_bytes(rows_only) + cache_bytes(shapes)


def _by_hand(run: Run, spec: KVSpec) -> HandCount | None:
    kinds = stored_as(run.planned.model)
    if len(kinds) > 1:
        return None
    return hand_count(
        run.planned.config,
        kinds[0],
        spec,
        ctx=run.ctx,
        batch=run.batch,
        tensor=run.axis(TENSOR),
        data=run.axis(DATA),
    )


def _lowered(run: Run, spec: KVSpec) -> dict[str, int] | None:
    if (platform := run.device.platform) is None:
        return None
    mesh = programs.named_mesh(run.mesh, run.device.kind)
    shapes = programs.make_shapes(
        run.planned.model,
        spec,
        None if run.mesh is None else mesh,
        ctx=run.ctx,
        batch=run.batch,
    )
    return hlo.lowered_calls(programs.lower_decode(shapes, mesh, platform))
