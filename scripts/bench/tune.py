"""Rows for the kernels' tables of tiles and warps (`tuning.py`, `matvec_tuning.py`).

    python scripts/bench/tune.py --kernel decode|matvec [--target gfx906] [--format delta]

tries rows for every format and shape. On a GPU it times them and prints the fastest row of each;
with these in the table the kernel is taken unasked. With `--target` it compiles them for a GPU that
is not at hand: a shape gets a row only where the general one spills registers or leaves no room for
a second wave (more than 128 vector registers), and of those that do not, it gets the one with the
fewest vector and local memory instructions for its work.
"""

import argparse
import dataclasses
import datetime
import sys
from collections.abc import Sequence
from typing import Any

import jax

from deltakv_jax.cli import arguments, progress
from deltakv_jax.errors import UserError
from deltakv_pallas.lowering import TARGETS, Target, device_kind
from deltakv_pallas.machine_code import Resources, compile_kernel
from scripts.bench import timing
from scripts.bench.tunable import TUNABLE, Shape, Tunable

ROUNDS = 20
ROOM = 128  # vector registers with which a SIMD of an AMD GPU holds two waves
GAIN = 0.97  # of the general row's cost; what is gained must be worth a row
CROWDED, SPILLED = 1e3, 1e6  # instructions that a register too many counts for


def main(argv: Sequence[str] | None = None) -> int:
    """Tries what the arguments ask for; returns the exit status."""
    parser = arguments.OneLineParser("tune.py", description="Rows for the tables of tiles.")
    parser.add_argument("--kernel", choices=tuple(TUNABLE), required=True, help="whose table")
    parser.add_argument("--target", choices=TARGETS, help="compile only, for this GPU")
    parser.add_argument("--format", metavar="NAME", help="this format only (all)")
    options = parser.parse_args(argv)
    return arguments.run(lambda: tune(options), prog=parser.prog)


def tune(options: argparse.Namespace) -> None:
    """Prints a row for each shape that gains by one."""
    kernel, target = TUNABLE[options.kernel], TARGETS.get(options.target)
    if target is None and jax.default_backend() != "gpu":
        raise UserError("there is no GPU here to time; give --target to compile for one")
    shapes = [s for s in kernel.shapes() if options.format in (None, s[0])]
    device = device_kind() if target is None else target.name
    with progress.shown(len(shapes), "shapes") as advance:
        for shape in shapes:
            if target is None:
                row = timed(kernel, shape, device)
            else:
                row = compiled(kernel, shape, target)
            if row is not None:
                print(f"    {as_written(row, kernel.general(device))},", flush=True)
            advance(1)


def as_written(row: Any, general: Any) -> str:
    """A row as the table has it: what sets it apart from the device's general row."""
    usual = dataclasses.asdict(general)
    own = {name: value for name, value in dataclasses.asdict(row).items() if value != usual[name]}
    return f"replace(GENERAL, {', '.join(f'{name}={value!r}' for name, value in own.items())})"


def timed(kernel: Tunable, shape: Shape, device: str) -> Any:
    """The fastest row for a shape on the device that is here."""
    rows = list(kernel.rows(kernel.general(device)))
    timer = kernel.timers(shape)
    timers = {str(i): timer(row) for i, row in enumerate(rows)}
    times = timing.interleaved(timers, ROUNDS)
    return _keyed(kernel, shape, rows[int(timing.fastest(times, timers)[0])], device, timed=True)


def compiled(kernel: Tunable, shape: Shape, target: Target) -> Any:
    """The cheapest row for a shape; None where the target's general row will do."""

    def cost(row: Any) -> float:
        resources = compile_kernel(kernel.case(*shape, tuning=row).lower(target), target)
        return _work(resources, kernel.work(row))

    general = kernel.general(target.name)
    if (before := cost(general)) < CROWDED:
        return None
    costs = {row: cost(row) for row in kernel.rows(general)}
    cheapest = min(costs, key=lambda row: costs[row])
    if costs[cheapest] >= GAIN * before:
        return None
    return _keyed(kernel, shape, cheapest, target.name, timed=False)


def _keyed(kernel: Tunable, shape: Shape, row: Any, device: str, *, timed: bool) -> Any:
    how = f"{'timed on' if timed else 'compiled for'} {device}"
    source = f"{datetime.date.today()}, {how}"
    keys = {"device": device, **kernel.keys(shape)}
    return dataclasses.replace(row, **keys, timed=timed, source=source)


def _work(found: Resources, work: float) -> float:
    """Instructions for a unit of work, and much more for registers that do not fit."""
    loop = found.loop or {}
    instructions = (loop.get("vector", 0) + loop.get("lds", 0)) / work
    return instructions + CROWDED * max(0, found.vgprs - ROOM) + SPILLED * found.spills


if __name__ == "__main__":
    sys.exit(main())
