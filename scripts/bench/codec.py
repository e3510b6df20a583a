"""What cache codecs cost a model at equal bits: rivals, single tools, and what they come to.

    python scripts/bench/codec.py [--model MODEL] [--text NAME ...] [--ctx N] [--chunks N]
        [--only FAMILY ...] [--name WORDS ...] [--by-layer FAMILY ...] [--from FILE ...]
        [--json FILE] [--plot FILE]

takes about an hour on two cores for the demo model at 2048 tokens, and 4 GB of memory; `--only` and
`--name` choose. A candidate is a format of the package or simulated (scripts/bench/codecs/), read
cache-true, its bits counted with windows and all side information. For each it prints the bits, the
mean KL divergence from exact caches and its 99.9th percentile, the share of equal likeliest tokens
and the paired change of perplexity with its 95 % interval. `q4_0:rotate` on python-docs should give
0.0370 nats, on python-code 0.0171.

Means and transforms are learned of other text: of the next of several texts, or of the chunks of a
single one that are not measured.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from rich.console import Console

from deltakv_jax.cli import arguments
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import files
from deltakv_jax.evaluation.protocol import Chunks
from deltakv_jax.evaluation.texts import Text, load_text
from deltakv_jax.generation.saving import fingerprint
from deltakv_jax.weights import LoadedModel, load_model
from scripts.bench import results
from scripts.bench.codecs import calibration, report, tables
from scripts.bench.codecs.candidates import FAMILIES, candidates, known, ring
from scripts.bench.codecs.measuring import Bench, all_chunks
from scripts.bench.codecs.passes import Candidate

_FROM = "measure nothing: show what --json wrote there"
_LAYER = "whose errors in each layer go into the JSON"
TEXTS = ("python-docs", "python-code")
CALIBRATION_TOKENS = 40_000
FILE_WIDTH = 150  # columns of a table that no terminal bounds


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    parser = arguments.OneLineParser("codec.py", description="Cache codecs at equal bits.")
    add = parser.add_argument
    number = functools.partial(arguments.whole_number, at_least=1)
    add("--model", default="demo", help="as for perplexity.py (%(default)s)")
    add("--text", nargs="+", default=TEXTS, metavar="NAME", help="(python-docs python-code)")
    add("--ctx", type=number, default=2048, metavar="N", help="tokens of a chunk (%(default)s)")
    add("--chunks", type=number, default=15, metavar="N", help="of each text (%(default)s)")
    add("--only", nargs="+", choices=tuple(FAMILIES), default=tuple(FAMILIES), metavar="FAMILY")
    add("--name", nargs="+", metavar="WORDS", help="only candidates whose name has one of these")
    add("--by-layer", nargs="+", choices=tuple(FAMILIES), default=(), metavar="FAMILY", help=_LAYER)
    add("--json", type=Path, metavar="FILE", help="write all figures there, after each candidate")
    add("--from", nargs="+", type=Path, dest="files", metavar="FILE", help=_FROM)
    add("--plot", type=Path, metavar="FILE", help="write a rate-distortion plot there")
    options = parser.parse_args(argv)
    return arguments.run(lambda: _measure(options), prog=parser.prog)


def _measure(options: argparse.Namespace) -> None:
    for path, name in ((options.json, "--json"), (options.plot, "--plot")):
        if path:
            files.check_writable(path, name)
    if options.files:
        _show(tables.read(options.files), options)
        return
    loaded = load_model(arguments.model_path(options.model))
    done: list[report.Run] = []

    def keep(run: report.Run) -> None:
        if options.json:
            made = report.to_json([*done, run], results.surroundings())
            files.write_atomically(options.json, made, "--json")

    texts = [load_text(name) for name in options.text]
    for text, other in zip(texts, [*texts[1:], texts[0]], strict=True):
        done.append(_run(loaded, text, other, options, keep))
    _show(done, options)


def _show(runs: Sequence[report.Run], options: argparse.Namespace) -> None:
    for run in runs:
        _print(run)
    if options.plot:
        report.save_plot(runs, options.plot)


def _run(
    loaded: LoadedModel,
    text: Text,
    other: Text,
    options: argparse.Namespace,
    keep: Callable[[report.Run], None],
) -> report.Run:
    """The figures of one text; `keep` is given what there is after each candidate."""
    chunks = all_chunks(loaded, text, options.ctx)
    measured = Chunks(chunks.tokens[: options.chunks], chunks.first, chunks.available)
    tokens = _calibration(loaded, text, other, options)
    moments = calibration.learn(loaded.model, tokens, ring(32)["window"])
    bench = Bench(loaded, measured, known(moments))
    run = report.Run(
        model=loaded.name,
        weights=fingerprint(loaded.model)["weights_checksum"],
        text=text.name,
        text_sha256=text.sha256,
        ctx=options.ctx,
        chunks=len(measured.tokens),
        calibration=f"{other.name}, {len(tokens)} chunks",
    )
    for candidate in _chosen(candidates(options.only, moments), options.name):
        figures = bench.measure(candidate, by_layer=candidate.family in options.by_layer)
        sys.stderr.write(f"{text.name}: {candidate.name} {figures.kld_mean:.5f}\n")
        run = dataclasses.replace(run, figures=(*run.figures, figures))
        keep(run)
    return run


def _chosen(made: Sequence[Candidate], names: Sequence[str] | None) -> list[Candidate]:
    chosen = [one for one in made if not names or any(words in one.name for words in names)]
    if not chosen:
        raise UserError(f"no candidate's name has {' or '.join(names or ())}")
    return chosen


def _calibration(
    loaded: LoadedModel, text: Text, other: Text, options: argparse.Namespace
) -> Int32[np.ndarray, "c t"]:
    """The chunks to learn from."""
    tokens = all_chunks(loaded, other, options.ctx).tokens
    if other is text:
        tokens = tokens[options.chunks :]
    if not len(tokens):
        raise UserError(f"{text.name} has no chunks left to learn from; give fewer --chunks")
    return tokens[: max(1, CALIBRATION_TOKENS // options.ctx)]


def _print(run: report.Run) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH, highlight=False, markup=False)
    console.print(f"{run.title}; learned of {run.calibration}")
    console.print(report.table(run.figures))


if __name__ == "__main__":
    sys.exit(main())
