"""How fast a model of the size of Llama 3.1 70B decodes on one device, with random weights.

    python scripts/bench/decode_70b.py [--model PRESET] [--kv FORMAT ...] [--context N]
        [--linear xla|pallas] [--attention xla|pallas] [--json FILE]

takes a minute on a GPU with 48 GB. Weights in q4_0 and a cache full of tokens are drawn on the
device. Steps of one sequence, the real `decode_step` with the likeliest token fed back, run in one
compiled loop. It prints the bytes of weights and cache that a step must read over the bandwidth of
copying 1 GiB: on a GPU, at least 0.50.

Figures are medians. A goal that is missed says NO and does not change the exit status.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deltakv_jax.cli import arguments
from deltakv_jax.codec import parse_spec
from scripts.bench import decode_speed, inference
from scripts.bench.results import Row

MODEL, KV, CONTEXT = "llama3.1-70b", ("q4_0", "delta"), 8192


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    parser = arguments.OneLineParser("decode_70b.py", description="Decoding with random weights.")
    add = parser.add_argument
    add("--model", default=MODEL, metavar="PRESET", help="as for plan.py (%(default)s)")
    add("--weights", default="q4_0", metavar="FORMAT", help="of all matrices (%(default)s)")
    add("--kv", nargs="+", default=KV, metavar="FORMAT", help=f"of the cache ({' '.join(KV)})")
    add("--context", type=arguments.positive, default=CONTEXT, help="tokens held (%(default)s)")
    add("--linear", choices=("xla", "pallas"), help="who multiplies (what the model would take)")
    add("--attention", choices=("xla", "pallas"), help="who attends (what the model would take)")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(argv)
    measure = lambda: inference.report(options.json, lambda: _rows(options))
    return arguments.run(measure, prog=parser.prog)


def _rows(options: argparse.Namespace) -> list[Row]:
    specs = {kv: parse_spec(kv) for kv in options.kv}
    return decode_speed.rows(
        options.model,
        options.weights,
        specs,
        options.context,
        linear=options.linear,
        attention=options.attention,
    )


if __name__ == "__main__":
    sys.exit(main())
