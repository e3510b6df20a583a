"""How fast a model runs, each figure as a ratio to what the machine itself can do.

    python scripts/bench/inference.py [--only prefill|encode|decode|attention|compile] [--json FILE]

takes about three minutes on two cores and 4 GB of memory. Nothing else should run: what is compared
takes turns, so that a ratio bears some noise, but not a busy neighbour. It prints, in five parts,

- prefill: a prompt of 512 tokens through a random Llama of 100 M parameters, over a float32 product
  of 2048 x 2048 matrices; at least 0.60,
- encode: packing that prompt's keys and values, in every format, over its prefill; `layered` at
  most 0.10,
- decode: the bytes of weights that a step of the compiled loop reads, over the bandwidth of copying
  1 GiB; at least 0.60,
- attention: one query token over 8192 packed ones, in every format, over a plain bfloat16 cache in
  the form that is fastest here; `delta` at most 1.00, and at most 1.10 over q4_0, `layered` 1.25
  (scripts/bench/attention.py has more),
- compile: the decode step of 80 layers over that of 8; at most 1.50.

Figures are medians. A goal that is missed says NO and does not change the exit status.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from rich.console import Console

from deltakv_jax.cli import arguments
from deltakv_jax.evaluation import files
from scripts.bench import attention_speed, compile_time, encode_speed, model_speed, results

PARTS = {
    "prefill": model_speed.prefill_rows,
    "encode": encode_speed.rows,
    "decode": model_speed.decode_rows,
    "attention": attention_speed.brief,
    "compile": compile_time.rows,
}
FILE_WIDTH = 190  # columns of a table that no terminal bounds
QUIET = 0.5  # load average above which somebody else is at work


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    parser = arguments.OneLineParser("inference.py", description="Speed of a model, as ratios.")
    parser.add_argument("--only", choices=tuple(PARTS), help="run one part")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(argv)
    return arguments.run(
        lambda: report(options.json, lambda: _rows(options.only)), prog=parser.prog
    )


def report(json: Path | None, measure: Callable[[], list[results.Row]]) -> None:
    """Prints the rows that `measure` returns, and writes them to `json`."""
    if json:
        files.check_writable(json, "--json")
    # a program from the disk would take no time to compile
    jax.config.update("jax_enable_compilation_cache", False)
    before = results.surroundings()
    _warn(before["load"])
    rows = measure()
    _console().print(results.table(rows))
    if json:
        files.write_atomically(json, results.to_json(rows, before).encode(), "--json")


def _rows(only: str | None) -> list[results.Row]:
    rows = []
    for part in [only] if only else PARTS:
        sys.stderr.write(f"measuring {part}\n")
        rows += PARTS[part]()
    return rows


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    return (
        console if console.is_terminal else Console(width=FILE_WIDTH, highlight=False, markup=False)
    )


def _warn(load: float) -> None:
    if load > QUIET:
        sys.stderr.write(f"warning: the load is {load}: figures want a machine that is idle\n")


if __name__ == "__main__":
    sys.exit(main())
