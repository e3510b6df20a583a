"""`deltakv calibrate`, the same as `python scripts/calibrate.py`."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from rich.table import Table

from deltakv_jax.calibration import Calibration
from deltakv_jax.cli import arguments, measuring, progress
from deltakv_jax.codec import Format, KVSpec, parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import allotment, files, report, texts
from deltakv_jax.evaluation.learning import Learned, learn
from deltakv_jax.evaluation.protocol import Chunks
from deltakv_jax.generation.saving import fingerprint
from deltakv_jax.generation.steps import empty_cache
from deltakv_jax.weights import LoadedModel

CHUNKS = 32
TEMPLATE = "layered"


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Learns what the arguments ask for; returns the exit status."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    say = measuring.sayer(parser.prog)
    return arguments.run(lambda: calibrate(options, say), prog=parser.prog)


def make_parser(prog: str | None) -> arguments.OneLineParser:
    """The options of this command."""
    parser = arguments.OneLineParser(
        prog, description="Learns of a model what its caches may know: means, costs, bits."
    )
    arguments.add_model_arguments(parser)
    measuring.add_text_arguments(parser, ", best one that no figure is made of")
    add = parser.add_argument
    add("--chunks", type=arguments.positive, default=CHUNKS, metavar="N", help=_CHUNKS_HELP)
    add("--bits", type=_bits, metavar="B", help=_BITS_HELP)
    add("--kv", metavar="SPEC", help=f"of --bits: all but the bits of its codes ({TEMPLATE})")
    add("--out", type=Path, required=True, metavar="FILE", help="write the calibration there")
    return parser


_CHUNKS_HELP = "take the first N (%(default)s)"
_BITS_HELP = (
    "allot bits to K and V of each layer, so that a packed value, scales counted, takes B at most"
)


def _bits(text: str) -> float:
    try:
        bits = float(text)
    except ValueError:
        bits = math.nan
    if not 0 < bits < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of bits, got {text!r}")
    return bits


def calibrate(options: argparse.Namespace, say: measuring.Say) -> None:
    """Learns, writes the file and shows the table."""
    template = _template(options)
    files.check_writable(options.out, "--out")
    text, loaded = texts.load_text(options.text), arguments.load(options)
    if template is not None:
        jax.eval_shape(lambda: empty_cache(loaded.config, template, capacity=1))
    chunks = measuring.cut(options, loaded, text, say)
    out, (count, ctx) = measuring.console(), chunks.tokens.shape
    out.print(f"{loaded.name} on {text.name}: {count} of {chunks.available} chunks of {ctx} tokens")
    with progress.shown(2 * count, "chunks, gone over twice") as advance:
        learned = learn(loaded.model, chunks.tokens, advance)
    made = _calibration(loaded, text, chunks, learned, _allotted(options, template, learned))
    files.write_atomically(options.out, made.to_bytes(), "--out")
    out.print(table(made, learned), legend(made), sep="\n")


def _template(options: argparse.Namespace) -> KVSpec | None:
    if options.bits is None:
        if options.kv is not None:
            raise UserError("--kv without --bits would change nothing")
        return None
    return parse_spec(options.kv or TEMPLATE)


def _allotted(
    options: argparse.Namespace, template: KVSpec | None, learned: dict[str, Learned]
) -> tuple[KVSpec, ...] | None:
    if template is None:
        return None
    k, v = learned["k"], learned["v"]
    return allotment.allot(
        template,
        k.cost(centred=template.k.centre),
        v.cost(centred=template.v.centre),
        average=options.bits,
        head_dim=k.mean.shape[-1],
    )


def _calibration(
    loaded: LoadedModel,
    text: texts.Text,
    chunks: Chunks,
    learned: dict[str, Learned],
    specs: tuple[KVSpec, ...] | None,
) -> Calibration:
    k, v = learned["k"], learned["v"]
    count, ctx = chunks.tokens.shape
    made = Calibration(
        k_mean=k.mean.astype(np.float16),
        v_mean=v.mean.astype(np.float16),
        k_cost=k.cost(centred=True).astype(np.float32),
        v_cost=v.cost(centred=True).astype(np.float32),
        specs=specs,
        model=loaded.name,
        fingerprint=fingerprint(loaded.model),
        text=text.name,
        text_sha256=text.sha256,
        ctx=ctx,
        chunks=count,
    )
    if not all(np.isfinite(x).all() for x in (made.k_mean, made.v_mean, made.k_cost, made.v_cost)):
        raise UserError("keys, values or their gradients are not finite; try --weights f32")
    return made


def table(made: Calibration, learned: dict[str, Learned]) -> Table:
    """A row for each layer."""
    shown = report.plain_table("layer", "cost K", "cost V", "mean K %", "mean V %")
    if made.specs is not None:
        for side in ("bits K", "bits V"):
            shown.add_column(side, justify="right", no_wrap=True)
    shares = zip(*(learned[side].mean_share() for side in "kv"), strict=True)
    costs = zip(made.k_cost, made.v_cost, strict=True)
    for layer, (cost, share) in enumerate(zip(costs, shares, strict=True)):
        cells = (*(f"{x:.4g}" for x in cost), *(f"{100 * x:.1f}" for x in share))
        shown.add_row(str(layer), *cells, *_bits_cells(made, layer))
    return shown


def _bits_cells(made: Calibration, layer: int) -> tuple[str, ...]:
    if made.specs is None:
        return ()
    spec, head_dim = made.specs[layer], made.k_mean.shape[-1]
    return tuple(f"{allotment.packed_bits(side, head_dim):.4g}" for side in (spec.k, spec.v))


def legend(made: Calibration) -> str:
    """What the columns mean, and what was allotted altogether."""
    lines = (
        "Cost is the KL divergence in nats for each unit of relative squared error of what is left "
        "of K or V without its mean; mean is its norm over the root mean square of K (before RoPE) "
        "or V."
    )
    if made.specs is None:
        return lines
    sides: list[Format] = [side for spec in made.specs for side in (spec.k, spec.v)]
    average = np.mean([allotment.packed_bits(side, made.k_mean.shape[-1]) for side in sides])
    return f"{lines} Bits are those of a packed value, scales counted: {average:.4g} on average."
