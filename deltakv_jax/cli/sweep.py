"""`deltakv sweep`, the same as `python scripts/sweep.py`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from deltakv_jax.cli import arguments, measuring, progress
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import plots, report, runner, sweep, texts
from deltakv_jax.evaluation.results import Run
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
        prog, description="Perplexity under KV cache formats, at several contexts."
    )
    arguments.add_model_arguments(parser)
    measuring.add_text_argument(parser)
    measuring.add_protocol_argument(parser)
    add = parser.add_argument
    add("--ctx", type=measuring.ctx, nargs="+", metavar="N", help=_CTX_HELP)
    add("--tokens", type=arguments.positive, metavar="N", help=_TOKENS_HELP)
    measuring.add_format_arguments(parser)
    measuring.add_output_arguments(parser)
    add("--plot", metavar="FILE.png", help="draw the changes against the context there")
    return parser


_CTX_HELP = f"tokens of a chunk (of {' '.join(map(str, sweep.CONTEXTS))} what the model holds)"
_TOKENS_HELP = "take the first N tokens of each text, about: whole chunks at every --ctx (all)"


def measure(options: argparse.Namespace, say: measuring.Say) -> None:
    """Runs every cell, shows a table for each text, writes the JSON and draws the picture."""
    measuring.check_json(options)
    if options.plot is not None:
        plots.check_plot_target(Path(options.plot))
    asked = measuring.formats(options)
    measured_on = [texts.load_text(name) for name in dict.fromkeys(options.text)]
    measuring.warn_of_texts(measured_on, asked, say)
    loaded = arguments.load(options)
    cells = sweep.cells(loaded, measured_on, _settings(options, loaded, asked, say), say)
    runs = _runs(options, loaded, cells, say)
    # stdout is for the JSON alone where it is asked for there
    out = measuring.console(stderr=options.json == "-")
    for of_text in sweep.by_text(runs):
        out.print(sweep.title(of_text[0]), sweep.table(of_text), "", sep="\n")
    measuring.write_json(options.json, report.to_json(runs, calibration=asked[1]))
    if options.plot is not None:
        plots.save(plots.sweep_figure(runs), Path(options.plot))


def _settings(
    options: argparse.Namespace, loaded: LoadedModel, asked: measuring.Formats, say: measuring.Say
) -> list[runner.Settings]:
    """One for each context, after the warnings about this model."""
    config = loaded.config
    contexts = _contexts(options, config.context)
    for ctx in contexts:
        measuring.check_context(ctx, config.context, beyond=options.beyond_context, say=say)
    if options.tokens is not None and options.tokens < contexts[-1]:
        raise UserError(
            f"--tokens {options.tokens} is less than one chunk of --ctx {contexts[-1]}; "
            "give more, or the smaller --ctx alone"
        )
    specs = measuring.usable(asked, loaded, say)
    return [
        runner.Settings(
            specs=specs,
            protocol=options.protocol,
            ctx=ctx,
            chunks=None if options.tokens is None else options.tokens // ctx,
            batch=options.batch,
            calibration=asked[1],
        )
        for ctx in contexts
    ]


def _contexts(options: argparse.Namespace, context: int) -> list[int]:
    """Those asked for, or the usual ones as far as the model goes; the model's own if none is."""
    if options.ctx:
        return sorted(set(options.ctx))
    return [n for n in sweep.CONTEXTS if n <= context or options.beyond_context] or [context]


def _runs(
    options: argparse.Namespace,
    loaded: LoadedModel,
    cells: Sequence[sweep.Cell],
    say: measuring.Say,
) -> list[Run]:
    total = sum(len(cell.chunks.tokens) * len(cell.settings.specs) for cell in cells)
    runs = []
    with progress.shown(total, "chunks x formats") as advance:
        for number, (text, settings, chunks) in enumerate(cells, 1):
            checkpoints = measuring.open_store(options, number, loaded, text, settings, say)
            runs.append(runner.evaluate(loaded, text, chunks, settings, advance, checkpoints))
    return runs
