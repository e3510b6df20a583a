"""Rows for the kernels' table of tiles and warps (`pallas/deltakv_pallas/tuning.py`).

    python scripts/bench/tune.py [--target gfx906] [--format delta]

tries tiles, warps and stages for every format and shape. On a GPU it times them and prints the
fastest row of each; with these in the table the kernel is taken unasked. With `--target` it
compiles them for a GPU that is not at hand: a shape gets a row only where the general one spills
registers or leaves no room for a second wave (more than 128 vector registers), and of those that
do not, it gets the one with the fewest vector and local memory instructions for a token.
"""

import argparse
import dataclasses
import datetime
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from deltakv_jax.cli import arguments, progress
from deltakv_jax.errors import UserError
from deltakv_pallas import cases
from deltakv_pallas.lowering import TARGETS, Target, device_kind
from deltakv_pallas.machine_code import Resources, compile_kernel
from deltakv_pallas.tuning import Tuning, decode_tuning
from scripts.bench import timing

TILES, WARPS, STAGES = (16, 32, 64), (2, 4, 8), (1,)
ROUNDS = 20
ROOM = 128  # vector registers with which a SIMD of an AMD GPU holds two waves
GAIN = 0.97  # of the general row's cost; what is gained must be worth a row
CROWDED, SPILLED = 1e3, 1e6  # instructions that a register too many counts for

Shape = tuple[str, int, int]


def main(argv: Sequence[str] | None = None) -> int:
    """Tries what the arguments ask for; returns the exit status."""
    parser = arguments.OneLineParser("tune.py", description="Rows for the table of tiles.")
    parser.add_argument("--target", choices=TARGETS, help="compile only, for this GPU")
    parser.add_argument("--format", metavar="SPEC", help="this format only (all)")
    options = parser.parse_args(argv)
    return arguments.run(lambda: tune(options), prog=parser.prog)


def tune(options: argparse.Namespace) -> None:
    """Prints a row for each shape that gains by one."""
    target = TARGETS.get(options.target)
    if target is None and jax.default_backend() != "gpu":
        raise UserError("there is no GPU here to time; give --target to compile for one")
    shapes = [s for s in cases.decode_shapes() if options.format in (None, s[0])]
    device = device_kind() if target is None else target.name
    with progress.shown(len(shapes), "shapes") as advance:
        for shape in shapes:
            if (row := best(shape, device, target)) is not None:
                print(f"    {as_written(row, device)},", flush=True)
            advance(1)


def as_written(row: Tuning, device: str) -> str:
    """A row as the table has it: what sets it apart from the device's general row."""
    general = dataclasses.asdict(decode_tuning(device, "", 0, 0))
    own = {name: value for name, value in dataclasses.asdict(row).items() if value != general[name]}
    return f"replace(GENERAL, {', '.join(f'{name}={value!r}' for name, value in own.items())})"


def best(shape: Shape, device: str, target: Target | None) -> Tuning | None:
    """The cheapest row for a shape; None where a target's general row will do."""
    general = decode_tuning(device, "", 0, 0)
    cost, enough = (_timed, 0.0) if target is None else (_compiled(target), CROWDED)
    if (before := cost(shape, general)) < enough:
        return None
    costs = {row: cost(shape, row) for row in _rows(general)}
    cheapest = min(costs, key=lambda row: costs[row])
    if target is not None and costs[cheapest] >= GAIN * before:
        return None
    spec, head_dim, heads = shape
    how = f"timed on {device}" if target is None else f"compiled for {device}"
    source = f"{datetime.date.today()}, {how}"
    return dataclasses.replace(
        cheapest,
        device=device,
        spec=spec,
        head_dim=head_dim,
        heads=heads,
        timed=target is None,
        source=source,
    )


def _rows(general: Tuning) -> Iterator[Tuning]:
    for tile, warps, stages in itertools.product(TILES, WARPS, STAGES):
        yield dataclasses.replace(general, tile=tile, warps=warps, stages=stages)


def _compiled(target: Target) -> Callable[[Shape, Tuning], float]:
    def cost(shape: Shape, row: Tuning) -> float:
        kernel = cases.decode_case(*shape, row).lower(target)
        return _work(compile_kernel(kernel, target), row)

    return cost


def _work(found: Resources, row: Tuning) -> float:
    """Instructions of all warps for a token, and much more for registers that do not fit."""
    loop = found.loop or {}
    work = (loop.get("vector", 0) + loop.get("lds", 0)) * row.warps / row.tile
    return work + CROWDED * max(0, found.vgprs - ROOM) + SPILLED * found.spills


def _timed(shape: Shape, row: Tuning) -> float:
    """The median seconds over a cache of zeros, which take as long to read as any."""
    case = cases.decode_case(*shape, row)
    q, positions, cache, layer = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), case.arguments)
    whole = positions + cache.capacity - 1
    attend = jax.jit(case.function)
    run = timing.timed(lambda: attend(q, whole, cache, layer))
    return timing.interleaved({"kernel": run}, ROUNDS)["kernel"]


if __name__ == "__main__":
    sys.exit(main())
