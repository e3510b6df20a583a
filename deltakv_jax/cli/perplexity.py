"""`deltakv perplexity`, the same as `python scripts/perplexity.py`."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from deltakv_jax.cli import arguments, progress
from deltakv_jax.codec import KVSpec, parse_spec
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import protocol, report, results, runner, texts

FILE_WIDTH = 120  # columns of a table that no terminal bounds

Say = Callable[[str], None]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Measures what the arguments ask for; returns the exit status."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    say = lambda line: print(arguments.one_line(parser.prog, line), end="", file=sys.stderr)
    return arguments.run(lambda: perplexity(options, say), prog=parser.prog)


def make_parser(prog: str | None) -> arguments.OneLineParser:
    """The options of this command."""
    parser = arguments.OneLineParser(
        prog,
        description="Perplexity of a Llama under KV cache formats, by llama-perplexity's protocol.",
    )
    arguments.add_model_arguments(parser)
    add = parser.add_argument
    add("--text", metavar="NAME|FILE", default=texts.DEFAULT, help=_TEXT_HELP)
    add("--ctx", type=_ctx, default=512, metavar="N", help="tokens of a chunk (%(default)s)")
    add("--chunks", type=arguments.positive, metavar="N", help="take the first N (all)")
    add("--kv", nargs="+", metavar="SPEC", help=_KV_HELP)
    add("--batch", type=arguments.positive, default=8, metavar="N", help=_BATCH_HELP)
    add("--sequential", action="store_true", help="feed one token at a time, as decoding does")
    add("--beyond-context", action="store_true", help="let --ctx exceed the model's context")
    add("--json", metavar="FILE|-", help="write all figures there; - is stdout")
    return parser


_TEXT_HELP = f"{', '.join(texts.NAMED)}, or a UTF-8 file (%(default)s)"
_KV_HELP = f"cache formats; the first is the base ({' '.join(runner.DEFAULT_FORMATS)})"
_BATCH_HELP = "chunks dispatched together; changes no result (%(default)s)"


def _ctx(text: str) -> int:
    return arguments.whole_number(text, at_least=protocol.MIN_CTX)


def perplexity(options: argparse.Namespace, say: Say) -> None:
    """Runs, shows the table and writes the JSON."""
    named = tuple(parse_spec(spec) for spec in options.kv or ())
    _check_target(options.json)
    text, loaded = texts.load_text(options.text), arguments.load(options)
    settings = _settings(options, loaded.config, named, say)
    chunks = runner.cut(loaded, text, settings)
    # stdout is for the JSON alone where it is asked for there
    out = _console(stderr=options.json == "-")
    out.print(_headline(loaded.name, text.name, chunks, settings))
    with progress.shown(len(chunks.tokens) * len(settings.specs), "chunks x formats") as advance:
        run = runner.evaluate(loaded, text, chunks, settings, advance)
    out.print(report.table(run), report.legend(run), sep="\n")
    _write(options.json, [run])


def _settings(
    options: argparse.Namespace, config: LlamaConfig, named: tuple[KVSpec, ...], say: Say
) -> runner.Settings:
    """What to measure on this model, after the warnings about it."""
    _check_context(options, config.context, say)
    return runner.Settings(
        specs=_usable(named, config.head_dim, say),
        ctx=options.ctx,
        chunks=options.chunks,
        batch=options.batch,
        sequential=options.sequential,
    )


def _usable(named: tuple[KVSpec, ...], head_dim: int, say: Say) -> tuple[KVSpec, ...]:
    """The formats asked for, or those of the default ones that hold this head_dim."""
    if not named:
        named, left_out = runner.default_specs(head_dim)
        for line in left_out:
            say(line)
    for spec in named:
        spec.check(head_dim)
    return named


def _check_target(json: str | None) -> None:
    if json not in (None, "-"):
        report.check_writable(Path(json))


def _check_context(options: argparse.Namespace, context: int, say: Say) -> None:
    if options.ctx <= context:
        return
    beyond = f"--ctx {options.ctx} is beyond the model's context of {context} tokens"
    if not options.beyond_context:
        raise UserError(f"{beyond}; --beyond-context lets it through")
    say(f"warning: {beyond}: the model is poor there, whatever the cache")


def _console(*, stderr: bool) -> Console:
    """Of the terminal's width, or wide enough for any table in a file or a pipe."""
    plain = functools.partial(Console, stderr=stderr, highlight=False, markup=False, emoji=False)
    console = plain()
    return console if console.is_terminal else plain(width=FILE_WIDTH)


def _headline(model: str, text: str, chunks: protocol.Chunks, settings: runner.Settings) -> str:
    route = "one token at a time" if settings.sequential else "whole chunks"
    return (
        f"{model} on {text}: {len(chunks.tokens)} of {chunks.available} chunks of {settings.ctx} "
        f"tokens, {chunks.scored} predictions scored, fed {route}"
    )


def _write(target: str | None, runs: Sequence[results.Run]) -> None:
    if target is None:
        return
    content = report.to_json(runs)
    if target == "-":
        sys.stdout.write(content)
    else:
        report.write_atomically(Path(target), content)
