"""Plans for the reader: a table with a column for each format, JSON for programs."""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.table import Table

from deltakv_jax.evaluation.report import plain_table, surroundings
from deltakv_jax.parallel.mesh import named
from deltakv_jax.planning.by_hand import HandCount
from deltakv_jax.planning.hlo import Collective
from deltakv_jax.planning.models import stored_as
from deltakv_jax.planning.plan import Plan, Run

COMPILER = "XLA:CPU"
"""Whose figure the scratch is."""


def headline(run: Run) -> str:
    """What is planned."""
    each = "The device"
    if run.mesh is not None and run.mesh.size > 1:
        each = f"Each of {run.mesh.size} devices ({named(run.mesh.shape)})"
    planned = run.planned
    return (
        f"{planned.name}, {' and '.join(stored_as(planned.model))} weights, batch {run.batch}, "
        f"room for {run.ctx:,} of the model's {planned.config.context:,} tokens.\n"
        f"{each}, {run.device.card}:"
    )


def table(run: Run, plans: Sequence[Plan]) -> Table:
    """A column for each format, in the order asked for."""
    made = plain_table("", *(plan.kv for plan in plans))
    for name, cell in _rows(run):
        made.add_row(name, *map(cell, plans))
    return made


def legend(run: Run, plans: Sequence[Plan]) -> str:
    """How the figures were made."""
    lines = [
        "A GB is 10^9 bytes, an MB 10^6. Weights, cache and arguments are exact. Scratch is what "
        "a step, or a piece of a prompt, needs besides, whichever needs more, as "
        f"{COMPILER} compiled them: an upper bound of what XLA needs on a GPU, whose libraries and "
        "driver take some too. It does not grow with the context; for the largest batch it is "
        "taken to be in proportion to the batch. A collective's bytes are those of its result on "
        "each device."
    ]
    if run.device.bandwidth:
        lines.append(
            "Tokens/s are those of all sequences together with a full cache, if a step took no "
            f"longer than reading weights and cache at {run.device.bandwidth / 1e9:.0f} GB/s, a "
            f"bound that no program reaches ({run.device.source})."
        )
    return "\n".join([*lines, *_by_hand(run, plans)])


def to_json(run: Run, plans: Sequence[Plan]) -> str:
    """Everything as JSON, bytes exact."""
    document = {
        "model": run.planned.name,
        "config": dataclasses.asdict(run.planned.config),
        "weights": stored_as(run.planned.model),
        "mesh": None if run.mesh is None else dict(run.mesh.shape),
        "planned_device": dataclasses.asdict(run.device),
        "memory": run.memory,
        "ctx": run.ctx,
        "batch": run.batch,
        "compiler": COMPILER,
        "plans": [_plain(plan) for plan in plans],
        **surroundings(),
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _rows(run: Run) -> Iterator[tuple[str, Callable[[Plan], str]]]:
    yield "weights", lambda plan: _size(plan.weight_bytes)
    yield "cache", lambda plan: _size(plan.cache_bytes)
    yield f"scratch ({COMPILER})", lambda plan: _size(plan.scratch)
    yield "total", lambda plan: _size(plan.total_bytes)
    if (memory := run.memory) is not None:
        fits = lambda plan: "yes" if plan.total_bytes <= memory else "no"
        yield f"fits in {memory / 1e9:g} GB", fits
        yield f"largest context, batch {run.batch}", lambda plan: _most(plan.largest_context)
        yield f"largest batch, {run.ctx:,} tokens", lambda plan: _most(plan.largest_batch)
    yield "arguments of a step", lambda plan: _size(plan.argument_bytes)
    yield "the same by hand", lambda plan: _size(plan.by_hand and plan.by_hand.bytes)
    yield "collectives of a step", lambda plan: _times(plan.collectives)
    yield "bytes of these", lambda plan: _moved(plan.collectives)
    if run.device.platform is not None:
        yield f"lowered for {run.device.platform}", lambda plan: _calls(plan.lowered or {})
    if run.device.bandwidth is not None:
        yield "tokens/s, at most", lambda plan: f"{plan.tokens_per_second:,.1f}"


def _size(size: float | None) -> str:
    if size is None:
        return "not known"
    return f"{size / 1e9:,.3f} GB" if size >= 1e9 else f"{size / 1e6:,.3f} MB"


def _most(count: int | None) -> str:
    return f"{count:,}" if count else "none"


def _times(held: Sequence[Collective]) -> str:
    times: collections.Counter[str] = collections.Counter()
    for one in held:
        times[one.kind] += one.times
    return _listed(times)


def _moved(held: Sequence[Collective]) -> str:
    return _size(sum(one.bytes * one.times for one in held))


def _calls(lowered: dict[str, int]) -> str:
    return _listed({name.rpartition("$")[2]: count for name, count in lowered.items()})


def _listed(counts: dict[str, int]) -> str:
    return "\n".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _by_hand(run: Run, plans: Sequence[Plan]) -> Iterator[str]:
    """The sums of the hand counts, written out."""
    counts = [(plan.kv, plan.by_hand) for plan in plans if plan.by_hand is not None]
    if not counts:
        return
    yield f"By hand, weights: {_weights_by_hand(counts[0][1])}"
    for kv, count in counts:
        yield f"By hand, {kv} cache: {_cache_by_hand(run, count)}"


def _weights_by_hand(count: HandCount) -> str:
    biases = f"{count.bias_values:,} in biases x 4 bytes / {count.tensor} + "
    biases = biases if count.bias_values else ""
    return (
        f"{count.matrix_values:,} in matrices x {count.matrix_bits:g} bits / {count.tensor} + "
        f"{biases}{count.norm_values:,} in norms x 4 bytes = {_size(count.weight_bytes)}"
    )


def _cache_by_hand(run: Run, count: HandCount) -> str:
    config = run.planned.config
    return (
        f"2 x {config.layers} layers x {config.kv_heads} kv heads x {config.head_dim} x "
        f"{run.ctx} tokens x {run.batch} x {count.cache_bits:g} bits / "
        f"{count.tensor * count.data} = {_size(count.cache_bytes)}"
    )


def _plain(plan: Plan) -> dict[str, Any]:
    count = plan.by_hand
    return {
        **dataclasses.asdict(plan),
        "scratch": plan.scratch,
        "total_bytes": plan.total_bytes,
        "by_hand": count and {**dataclasses.asdict(count), "bytes": count.bytes},
        "collectives": [one._asdict() for one in plan.collectives],
    }
