"""`deltakv compile_gpu`, the same as `python scripts/compile_gpu.py`."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from deltakv_jax.cli import arguments, measuring, progress
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import files, report
from deltakv_pallas.cases import CASES, Case
from deltakv_pallas.lowering import TARGETS
from deltakv_pallas.machine_code import TRITON, Resources, compile_kernel

Compiled = list[tuple[Case, Resources]]

_COLUMNS = ("format", "shape", "VGPRs", "SGPRs", "spills", "LDS", "waves", "code")
_LEGEND = (
    "VGPRs and SGPRs: vector and scalar registers (on NVIDIA, registers of a thread). spills: "
    "registers that went to memory. LDS: bytes of local memory of a program. waves: that a SIMD "
    "holds at once, as far as registers go. code: bytes."
)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Compiles what the arguments ask for; returns the exit status."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    return arguments.run(lambda: compile_all(options), prog=parser.prog)


def make_parser(prog: str | None) -> arguments.OneLineParser:
    """The options of this command."""
    parser = arguments.OneLineParser(
        prog, description="Compiles the GPU kernels for a GPU that need not be at hand."
    )
    add = parser.add_argument
    add("--target", choices=TARGETS, default="gfx906", help="the GPU (%(default)s, an MI50)")
    add("--kernel", choices=CASES, help="this one only (all)")
    add("--format", metavar="NAME", help="kernels that read this format only (all)")
    add("--json", metavar="FILE", help="write all figures there")
    return parser


def compile_all(options: argparse.Namespace) -> None:
    """Compiles the cases asked for, shows a table, writes the JSON."""
    if options.json is not None:
        files.check_writable(Path(options.json), "--json")
    compiled = _compile(_cases(options), options.target)
    console = measuring.console()
    console.print(f"{len(compiled)} kernels for {options.target}, compiled by Triton {TRITON}")
    console.print(_table(compiled), _LEGEND, sep="\n")
    if options.json is not None:
        content = json.dumps(_to_json(compiled, options.target), indent=1) + "\n"
        files.write_atomically(Path(options.json), content.encode(), "--json")


def _cases(options: argparse.Namespace) -> list[Case]:
    kernels = CASES if options.kernel is None else [options.kernel]
    cases = [case for kernel in kernels for case in CASES[kernel]()]
    chosen = [case for case in cases if options.format in (None, case.format)]
    if not chosen:
        known = ", ".join(dict.fromkeys(case.format for case in cases))
        raise UserError(f"--format: no kernel reads {options.format!r}; known: {known}")
    return chosen


def _compile(cases: list[Case], target: str) -> Compiled:
    with progress.shown(len(cases), "kernels") as advance:
        compiled = []
        for case in cases:
            kernel = case.lower(TARGETS[target])
            compiled.append((case, compile_kernel(kernel, TARGETS[target])))
            advance(1)
        return compiled


def _table(compiled: Compiled) -> Table:
    made = report.plain_table("kernel", *_COLUMNS)
    for case, found in compiled:
        numbers = (found.vgprs, found.sgprs, found.spills, found.lds, found.occupancy, found.code)
        cells = ("" if number is None else str(number) for number in numbers)
        made.add_row(case.kernel, case.format, case.shape, *cells)
    return made


def _to_json(compiled: Compiled, target: str) -> dict[str, object]:
    rows = [
        {"kernel": case.kernel, "format": case.format, "shape": case.shape}
        | dataclasses.asdict(found)
        for case, found in compiled
    ]
    return {"target": target, "triton": TRITON, "kernels": rows}
