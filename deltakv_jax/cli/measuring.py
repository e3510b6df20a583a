"""What the commands share that measure formats on texts."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from deltakv_jax.calibration import Calibration
from deltakv_jax.cli import arguments
from deltakv_jax.codec import CacheSpec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import files, protocol, runner, store, texts
from deltakv_jax.generation.saving import fingerprint
from deltakv_jax.weights import LoadedModel

FILE_WIDTH = 120  # columns of a table that no terminal bounds

Say = Callable[[str], None]


def add_text_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--text`, one or more."""
    named = ", ".join(texts.NAMED)
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="NAME|FILE",
        default=[texts.DEFAULT],
        help=f"{named}, or a UTF-8 file ({texts.DEFAULT})",
    )


def add_protocol_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--protocol`."""
    parser.add_argument(
        "--protocol",
        choices=tuple(protocol.PROTOCOLS),
        default=protocol.DEFAULT,
        help="which predictions are scored: the second half of chunks that begin with BOS, or all "
        "of windows (%(default)s)",
    )


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--kv`, `--kv-calibration`, `--batch` and `--beyond-context`."""
    add = parser.add_argument
    formats = " ".join(runner.DEFAULT_FORMATS)
    add("--kv", nargs="+", metavar="SPEC", help=f"cache formats; the first is the base ({formats})")
    arguments.add_calibration_argument(parser)
    add(
        "--batch",
        type=arguments.positive,
        default=8,
        metavar="N",
        help="chunks dispatched together, and kept by --resume; changes no result (%(default)s)",
    )
    add("--beyond-context", action="store_true", help="let --ctx exceed the model's context")


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--json` and `--resume`."""
    add = parser.add_argument
    add("--json", metavar="FILE|-", help="write all figures there; - is stdout")
    add("--resume", action="store_true", help="go on with an interrupted run of the same --json")


def ctx(text: str) -> int:
    """`text` as the tokens of a chunk, for `type=` of an argument."""
    return arguments.whole_number(text, at_least=protocol.MIN_CTX)


CTX = 512  # tokens of a chunk, where the model's context has as many


def add_text_arguments(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Adds `--text`, `--ctx` and `--beyond-context`, of one text by the default protocol."""
    add = parser.add_argument
    named = f"{', '.join(texts.NAMED)}, or a UTF-8 file{note} (%(default)s)"
    add("--text", metavar="NAME|FILE", default=texts.DEFAULT, help=named)
    length = f"tokens of a chunk ({CTX}, or the model's context if that is less)"
    add("--ctx", type=ctx, metavar="N", help=length)
    add("--beyond-context", action="store_true", help="let --ctx exceed the model's context")


def cut(
    options: argparse.Namespace, loaded: LoadedModel, text: texts.Text, say: Say
) -> protocol.Chunks:
    """The chunks of `text` that these and `--chunks` ask for; warns as `check_context` does."""
    context = loaded.config.context
    length = options.ctx or min(CTX, context)
    check_context(length, context, beyond=options.beyond_context, say=say)
    return runner.cut(loaded, text, runner.Settings(specs=(), ctx=length, chunks=options.chunks))


def sayer(prog: str) -> Say:
    """Tells the user one line on stderr."""
    return lambda line: print(arguments.one_line(prog, line), end="", file=sys.stderr, flush=True)


def console(*, stderr: bool = False) -> Console:
    """Of the terminal's width, or wide enough for any table in a file or a pipe."""
    plain = functools.partial(Console, stderr=stderr, highlight=False, markup=False, emoji=False)
    made = plain()
    return made if made.is_terminal else plain(width=FILE_WIDTH)


Formats = tuple[tuple[CacheSpec, ...], Calibration | None]
"""What was asked for, nothing if nothing was, and the calibration that it takes."""


def formats(options: argparse.Namespace) -> Formats:
    """What `--kv` and `--kv-calibration` ask for, read before anything takes its time."""
    return arguments.cache_specs(options, options.kv or ())


def usable(asked: Formats, loaded: LoadedModel, say: Say) -> tuple[CacheSpec, ...]:
    """The formats asked for, which must fit the model, or those of the default ones that do."""
    specs, calibration = asked
    head_dim = loaded.config.head_dim
    if calibration is not None:
        calibration.check_model(fingerprint(loaded.model))
    if not specs:
        specs, left_out = runner.default_specs(head_dim)
        for line in left_out:
            say(line)
    for spec in specs:
        spec.check(head_dim)
    return specs


def warn_of_texts(texts_: Sequence[texts.Text], asked: Formats, say: Say) -> None:
    """Says so where figures are made of the text that the calibration was learned on."""
    _, calibration = asked
    for text in texts_:
        if calibration is not None and text.sha256 == calibration.text_sha256:
            say(f"warning: the calibration was learned on {text.name}, which it is measured on")


def check_context(ctx: int, context: int, *, beyond: bool, say: Say) -> None:
    """Refuses chunks beyond the model's context, or warns of them where they are let through."""
    if ctx <= context:
        return
    found = f"--ctx {ctx} is beyond the model's context of {context} tokens"
    if not beyond:
        raise UserError(f"{found}; --beyond-context lets it through")
    say(f"warning: {found}: the model is poor there, whatever the cache")


def check_json(options: argparse.Namespace) -> None:
    """Raises UserError where `--json` and `--resume` cannot be served."""
    if options.json in (None, "-"):
        if options.resume:
            raise UserError("--resume needs --json FILE: checkpoints lie beside that file")
        return
    files.check_writable(Path(options.json), "--json")
    folder = checkpoint_folder(options.json)
    if not options.resume and store.holds_run(folder):
        raise UserError(
            f"{folder} holds an interrupted run: --resume goes on with it, or remove that folder"
        )


def checkpoint_folder(json: str) -> Path:
    """Where the checkpoints of all runs lie whose figures go to this file."""
    return Path(f"{json}.progress")


def open_store(
    options: argparse.Namespace,
    number: int,
    loaded: LoadedModel,
    text: texts.Text,
    settings: runner.Settings,
    say: Say,
) -> store.Store | None:
    """The checkpoints of the run of this `number` of those that go to `--json`, if it is a file."""
    if options.json in (None, "-"):
        return None
    folder = checkpoint_folder(options.json) / f"run-{number}"
    return store.Store.open(folder, runner.identity(loaded, text, settings), say=say)


def write_json(target: str | None, content: str) -> None:
    """Writes the figures of all runs, whose checkpoints are then of no more use."""
    if target is None:
        return
    if target == "-":
        sys.stdout.write(content)
        return
    files.write_atomically(Path(target), content.encode(), "--json")
    store.discard(checkpoint_folder(target))
