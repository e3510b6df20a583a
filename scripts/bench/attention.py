"""How fast one query token attends to a long packed cache, on every machine.

    python scripts/bench/attention.py [--shape NAME ...] [--kv FORMAT ...] [--attention xla|pallas]
        [--json FILE]

takes about two minutes on two cores and 6 GB of memory. Nothing else should run: whatever is
compared takes turns. For each shape it prints

- the plain forms: attention over bf16, f16 and f32 arrays, by `jax.nn.dot_product_attention` and by
  einsums, as far as they come near the fastest one,
- each format: the bytes of K and V that must be read over the bandwidth of copying 1 GiB, and its
  time over that of the fastest plain form of each dtype, and of the library's.

On a CPU, `q4_0` and `delta` should take at most 1.00 of plain bf16 and 0.60 of plain f32 at 8192
tokens, 0.80 of plain bf16 at 32768, `delta` at most 1.10 and `layered` 1.25 of `q4_0`. Figures are
medians. A goal that is missed says NO and does not change the exit status.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from deltakv_jax.cli import arguments
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from scripts.bench import attention_speed, inference
from scripts.bench.results import Row
from scripts.bench.shapes import ATTENTION

SHAPES = ("llama3_8b_decode_8k", "llama3_8b_decode_32k")
KV = ("q8_0", "q4_0", "delta", "layered", "layered:bits=3", "layered:bits=2")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    parser = arguments.OneLineParser("attention.py", description="Speed of attention.")
    add = parser.add_argument
    names = ", ".join(ATTENTION)
    add("--shape", nargs="+", choices=tuple(ATTENTION), default=SHAPES, metavar="NAME", help=names)
    add("--kv", nargs="+", default=KV, metavar="FORMAT", help=f"({' '.join(KV)})")
    add("--attention", choices=tuple(attention_speed.ATTENDS), default="xla", help="(%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(argv)
    return arguments.run(lambda: _report(options), prog=parser.prog)


def _report(options: argparse.Namespace) -> None:
    for kv in options.kv:
        parse_spec(kv)
    arguments.implementation(options)
    inference.report(options.json, lambda: _rows(options))


def _rows(options: argparse.Namespace) -> list[Row]:
    rows = []
    for name in options.shape:
        sys.stderr.write(f"measuring {name}\n")
        try:
            rows += attention_speed.rows(name, options.kv, options.attention)
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"{name}: {str(error).splitlines()[0]}") from None
    return rows


if __name__ == "__main__":
    sys.exit(main())
