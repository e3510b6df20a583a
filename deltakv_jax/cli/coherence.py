"""`deltakv coherence`, the same as `python scripts/coherence.py`."""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from deltakv_jax.cli import arguments, measuring, progress
from deltakv_jax.evaluation import (
    coherence,
    coherence_plot,
    coherence_report,
    files,
    plots,
    texts,
)
from deltakv_jax.evaluation.capture import Captured
from deltakv_jax.evaluation.coherence import Coherence
from deltakv_jax.evaluation.protocol import Chunks
from deltakv_jax.weights import LoadedModel


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    say = measuring.sayer(parser.prog)
    return arguments.run(lambda: measure(options, say), prog=parser.prog)


def make_parser(prog: str | None) -> arguments.OneLineParser:
    """The options of this command."""
    parser = arguments.OneLineParser(
        prog, description="How much neighbouring tokens have in common in K and V, layer by layer."
    )
    arguments.add_model_arguments(parser)
    measuring.add_text_arguments(parser)
    add = parser.add_argument
    add("--chunks", type=arguments.positive, metavar="N", help="take the first N (all)")
    add("--interval", type=_interval, default=32, metavar="N", help=_INTERVAL_HELP)
    add("--json", metavar="FILE|-", help="write all figures there; - is stdout")
    add("--plot", metavar="FILE.png", help="draw the figures there, layer by layer")
    return parser


_INTERVAL_HELP = "tokens from keyframe to keyframe of delta (%(default)s)"
_interval = functools.partial(arguments.whole_number, at_least=2)


def measure(options: argparse.Namespace, say: measuring.Say) -> None:
    """Captures, shows the table, writes the JSON and draws the picture."""
    _check_targets(options)
    text, loaded = texts.load_text(options.text), arguments.load(options)
    chunks = measuring.cut(options, loaded, text, say)
    # stdout is for the JSON alone where it is asked for there
    out = measuring.console(stderr=options.json == "-")
    out.print(f"{loaded.name} on {text.name}: {_extent(chunks)}, K and V of an exact cache")
    found = _coherence(options, loaded, text, chunks)
    out.print(coherence_report.table(found), coherence_report.legend(found), sep="\n")
    _write_json(options.json, found)
    if options.plot is not None:
        plots.save(coherence_plot.figure(found), Path(options.plot))


def _check_targets(options: argparse.Namespace) -> None:
    if options.json not in (None, "-"):
        files.check_writable(Path(options.json), "--json")
    if options.plot is not None:
        plots.check_plot_target(Path(options.plot))


def _extent(chunks: Chunks) -> str:
    count, ctx = chunks.tokens.shape
    return f"{count} of {chunks.available} chunks of {ctx} tokens"


def _coherence(
    options: argparse.Namespace, loaded: LoadedModel, text: texts.Text, chunks: Chunks
) -> Coherence:
    count, ctx = chunks.tokens.shape
    with progress.shown(2 * count, "chunks, gone over twice") as advance:
        captured = Captured(loaded.model, chunks.tokens, advance)
        rows = coherence.rows(captured, options.interval)
    return Coherence(
        model=loaded.name,
        text=text.name,
        text_sha256=text.sha256,
        ctx=ctx,
        chunks=count,
        head_dim=loaded.config.head_dim,
        interval=options.interval,
        rows=rows,
    )


def _write_json(target: str | None, found: Coherence) -> None:
    if target is None:
        return
    content = coherence_report.to_json(found)
    if target == "-":
        sys.stdout.write(content)
    else:
        files.write_atomically(Path(target), content.encode(), "--json")
