"""`deltakv perplexity`, the same as `python scripts/perplexity.py`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from deltakv_jax.cli import arguments, measuring, mesh, progress
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import plots, protocol, report, runner, scoring, texts
from deltakv_jax.evaluation.results import Run
from deltakv_jax.parallel import processes
from deltakv_jax.parallel.mesh import named
from deltakv_jax.weights import LoadedModel


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    say = measuring.sayer(parser.prog)
    return arguments.run(lambda: perplexity(options, say), prog=parser.prog)


def make_parser(prog: str | None) -> arguments.OneLineParser:
    """The options of this command."""
    parser = arguments.OneLineParser(
        prog, description="Perplexity of a Llama under KV cache formats, on the same tokens."
    )
    arguments.add_model_arguments(parser)
    mesh.add_mesh_arguments(parser)
    arguments.add_attention_argument(parser)
    measuring.add_text_argument(parser)
    measuring.add_protocol_argument(parser)
    add = parser.add_argument
    add("--ctx", type=measuring.ctx, metavar="N", help=_CTX_HELP)
    add("--chunks", type=arguments.positive, metavar="N", help="take the first N (all)")
    measuring.add_format_arguments(parser)
    add("--sequential", action="store_true", help="feed one token at a time, as decoding does")
    add("--reads", choices=scoring.READS, default="cache", help=_READS_HELP)
    add("--by-layer", action="store_true", help="also measure the errors of each layer")
    measuring.add_output_arguments(parser)
    add("--plot", metavar="FILE.png", help="draw the figures there, one file for each text")
    return parser


_CTX_HELP = f"tokens of a chunk ({protocol.PROTOCOLS[protocol.DEFAULT].ctx}; gptq: 2048)"
_READS_HELP = (
    "what a token attends to: the cache alone, or, NOT cache-true, raw tokens that are not yet "
    "packed (%(default)s)"
)


def perplexity(options: argparse.Namespace, say: measuring.Say) -> None:
    """Runs, shows the tables, writes the JSON and draws the pictures."""
    measuring.check_json(options)
    if options.by_layer and options.reads != "cache":
        raise UserError("--by-layer measures what the cache holds: leave out --reads raw")
    if options.attention not in (None, "xla") and (options.by_layer or options.reads != "cache"):
        raise UserError(
            f"--attention {options.attention} reads the cache alone: leave out --by-layer and "
            "--reads raw"
        )
    if options.distributed and options.resume:
        raise UserError("--resume with --distributed: several processes keep no checkpoints")
    pictures, asked = _pictures(options), measuring.formats(options)
    measured_on = [texts.load_text(name) for name in options.text]
    measuring.warn_of_texts(measured_on, asked, say)
    with mesh.opened(options) as devices:
        loaded = arguments.load(options, devices)
        settings = _settings(options, loaded, asked, say)
        # stdout is for the JSON alone where it is asked for there
        out = measuring.console(stderr=options.json == "-")
        runs = [
            _run(options, number, loaded, text, settings, out, say)
            for number, text in enumerate(measured_on, 1)
        ]
        if processes.is_first():
            content = report.to_json(runs, devices, settings.calibration)
            _write(options, runs, content, pictures)


def _write(
    options: argparse.Namespace, runs: Sequence[Run], content: str, pictures: list[Path]
) -> None:
    measuring.write_json(options.json, content)
    for run, path in zip(runs, pictures, strict=bool(pictures)):
        plots.save(plots.formats_figure(run), path)


def _run(
    options: argparse.Namespace,
    number: int,
    loaded: LoadedModel,
    text: texts.Text,
    settings: runner.Settings,
    out: Console,
    say: measuring.Say,
) -> Run:
    chunks = runner.cut(loaded, text, settings)
    note = arguments.attention_note(options)
    out.print(_headline(loaded, text.name, chunks, settings) + note)
    checkpoints = None
    if not options.distributed:
        checkpoints = measuring.open_store(options, number, loaded, text, settings, say)
    with progress.shown(len(chunks.tokens) * len(settings.specs), "chunks x formats") as advance:
        run = runner.evaluate(loaded, text, chunks, settings, advance, checkpoints)
    out.print(report.table(run), report.details(run), sep="\n")
    if settings.by_layer:
        out.print(report.LAYERS, report.layers(run), sep="\n")
    out.print(report.legend(run))
    return run


def _settings(
    options: argparse.Namespace, loaded: LoadedModel, asked: measuring.Formats, say: measuring.Say
) -> runner.Settings:
    """What to measure on this model, after the warnings about it."""
    ctx = options.ctx or protocol.PROTOCOLS[options.protocol].ctx
    context = loaded.config.context
    measuring.check_context(ctx, context, beyond=options.beyond_context, say=say)
    return runner.Settings(
        specs=measuring.usable(asked, loaded, say),
        protocol=options.protocol,
        ctx=ctx,
        chunks=options.chunks,
        batch=options.batch,
        sequential=options.sequential,
        reads=options.reads,
        by_layer=options.by_layer,
        implementation=arguments.implementation(options),
        calibration=asked[1],
    )


def _pictures(options: argparse.Namespace) -> list[Path]:
    """A file for each text: the one asked for, or that with the text's name in it."""
    if options.plot is None:
        return []
    path = Path(options.plot)
    named = lambda text: path.with_stem(f"{path.stem}-{Path(text).stem}")
    paths = [path] if len(options.text) == 1 else [named(text) for text in options.text]
    if len(set(paths)) < len(paths):
        raise UserError("--plot: two texts have one name, and would have one picture")
    for one in paths:
        plots.check_plot_target(one)
    return paths


def _headline(
    loaded: LoadedModel, text: str, chunks: protocol.Chunks, settings: runner.Settings
) -> str:
    model = loaded.name if loaded.mesh is None else f"{loaded.name}, {named(loaded.mesh.shape)},"
    route = "one token at a time" if settings.sequential else "whole chunks"
    reads = "" if settings.reads == "cache" else "; attention reads RAW tokens: NOT cache-true"
    return (
        f"{model} on {text}: {len(chunks.tokens)} of {chunks.available} chunks of {settings.ctx} "
        f"tokens ({settings.protocol}), {chunks.scored} predictions scored, fed {route}{reads}"
    )
