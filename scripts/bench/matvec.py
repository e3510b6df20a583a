"""How fast a packed matrix is multiplied with a few vectors.

    python scripts/bench/matvec.py [--shape NAME ...] [--weights FORMAT ...]
        [--linear xla|pallas] [--batch N] [--json FILE]

takes about ten seconds a shape on a GPU, and up to 3 GB of its memory. Nothing else should run:
whatever is compared takes turns. For each shape it prints

- a bfloat16 matrix, and each format: the bytes that must be read over the bandwidth of copying
  1 GiB,
- each format's time over that of plain JAX (`xla`) and of the bfloat16 matrix.

A figure is one product out of a compiled loop over layers that no cache holds, the rounding of x
included. On a GPU, q4_0 should reach 0.75 of copying with the large matrices of a 70B. A goal that
is missed says NO and does not change the exit status.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from deltakv_jax.cli import arguments
from deltakv_jax.errors import UserError
from scripts.bench import inference, matvec_speed
from scripts.bench.results import Row
from scripts.bench.shapes import MATRICES

SHAPES = ("llama3_70b_query", "llama3_70b_key", "llama3_70b_gate", "llama3_70b_down")
WEIGHTS = ("q4_0", "q8_0", "q4_k", "q6_k")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    parser = arguments.OneLineParser("matvec.py", description="Speed of packed products.")
    add, kinds = parser.add_argument, matvec_speed.KINDS
    names = ", ".join(MATRICES)
    add("--shape", nargs="+", choices=tuple(MATRICES), default=SHAPES, metavar="NAME", help=names)
    add("--weights", nargs="+", choices=kinds, default=WEIGHTS, metavar="FORMAT", help=str(kinds))
    add("--linear", choices=("xla", "pallas"), help="who multiplies (what the model would take)")
    add("--batch", type=arguments.positive, default=1, metavar="N", help="vectors (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(argv)
    measure = lambda: inference.report(options.json, lambda: _rows(options))
    return arguments.run(measure, prog=parser.prog)


def _rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for name in options.shape:
        sys.stderr.write(f"measuring {name}\n")
        try:
            rows += matvec_speed.rows(name, options.weights, options.linear, options.batch)
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"{name}: {str(error).splitlines()[0]}") from None
    return rows


if __name__ == "__main__":
    sys.exit(main())
