"""What the commands share: a parser with one-line errors, the model's options, exit statuses.

Bad input ends a command with one line on stderr and exit status 2, whether the parser finds it or
the work does (as a `UserError`). A command is

    def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
        parser = make_parser(prog)
        options = parser.parse_args(argv)
        return run(lambda: work(options), prog=parser.prog)
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import jax
from jax.sharding import Mesh

from deltakv_jax.attention import Implementation
from deltakv_jax.calibration import (
    CALIBRATED,
    Calibration,
    load_calibration,
    parse_cache_spec,
    takes_means,
)
from deltakv_jax.codec import CacheSpec, LayerSpecs
from deltakv_jax.errors import UserError
from deltakv_jax.weights import LoadedModel, demo_folder, load_model
from deltakv_jax.weights.load import EXPECTED, HUB
from deltakv_jax.weights.storage import WEIGHTS

WRONG_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, without the usage, and exit with status 2.

    Options cannot be abbreviated: a script that relies on it breaks when an option is added.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Prints `message` on one line of stderr and exits."""
        self.exit(WRONG_INPUT, one_line(self.prog, message))

    def parse_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parses all of `args`; an unknown one is named, with the nearest known option."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]!r}; {self._nearest(unknown[0])}")
        return options

    def _nearest(self, word: str) -> str:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(word.split("=")[0], known, n=1)
        return f"did you mean {near[0]}?" if near else f"known: {' '.join(known)}"


def one_line(prog: str, message: object) -> str:
    """`message` as one line of the program `prog`, with its newline."""
    return f"{prog}: {' '.join(str(message).split())}\n"


def run(work: Callable[[], None], *, prog: str) -> int:
    """Does `work` and returns the exit status: 0, or 2 after the one line of a `UserError`."""
    try:
        work()
        sys.stdout.flush()  # a closed pipe shows here and not while the interpreter ends
    except UserError as error:
        sys.stderr.write(one_line(prog, error))
        return WRONG_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(one_line(prog, "interrupted"))
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return 0


def whole_number(text: str, *, at_least: int) -> int:
    """`text` as an integer of at least `at_least`, for `type=` of an argument."""
    try:
        number = int(text)
    except ValueError:
        number = at_least - 1
    if number < at_least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {at_least}, got {text!r}"
        )
    return number


def positive(text: str) -> int:
    """`text` as an integer of at least 1, for `type=` of an argument."""
    return whole_number(text, at_least=1)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--model` and `--weights`, which `load` reads."""
    parser.add_argument(
        "--model",
        metavar=f"demo|FOLDER|FILE.gguf|{HUB}OWNER/NAME",
        default="demo",
        help=f"the model inside the package, {EXPECTED} of the hub (%(default)s)",
    )
    add_weights_argument(parser)


def add_weights_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--weights`."""
    parser.add_argument("--weights", choices=WEIGHTS, help=_WEIGHTS_HELP)


def add_attention_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--attention`, which `implementation` reads."""
    parser.add_argument("--attention", choices=ATTENTION, help=_ATTENTION_HELP)


def add_calibration_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--kv-calibration`, which `cache_specs` reads."""
    parser.add_argument("--kv-calibration", metavar="FILE", help=_CALIBRATION_HELP)


_CALIBRATION_HELP = (
    "of scripts/calibrate.py: the means for formats with centre, and the formats of all layers for "
    f"--kv {CALIBRATED}"
)


def cache_specs(
    options: argparse.Namespace, names: Sequence[str]
) -> tuple[tuple[CacheSpec, ...], Calibration | None]:
    """The formats of these names, and the calibration that they take."""
    path = options.kv_calibration
    calibration = None if path is None else load_calibration(path)
    specs = tuple(parse_cache_spec(name, calibration) for name in names)
    if calibration is not None and not any(map(_takes_calibration, specs)):
        raise UserError(
            f"--kv-calibration would change nothing; give --kv {CALIBRATED} or a format with "
            "centre, as layered:centre"
        )
    return specs, calibration


def _takes_calibration(spec: CacheSpec) -> bool:
    return isinstance(spec, LayerSpecs) or takes_means(spec)


ATTENTION: tuple[Implementation, ...] = ("xla", "pallas", "pallas-interpret")

_ATTENTION_HELP = (
    "what reads the cache: plain JAX, the GPU kernel, or the kernel interpreted, slowly and on any "
    "machine (the kernel for single tokens where it was timed on this GPU, or else xla)"
)


def implementation(options: argparse.Namespace) -> Implementation | None:
    """What `--attention` asks for, if this machine has it."""
    platform = jax.default_backend()
    if options.attention == "pallas" and platform != "gpu":
        raise UserError(
            f"--attention pallas needs a GPU, and JAX runs on a {platform} here; xla and "
            "pallas-interpret run on any machine"
        )
    return options.attention


def attention_note(options: argparse.Namespace) -> str:
    """What figures must say of how they were made; empty if nothing was asked for."""
    notes = {"pallas": "; attention by the kernel", "pallas-interpret": f"; {INTERPRETED}"}
    return notes.get(options.attention, "")


INTERPRETED = "attention by the kernel, INTERPRETED: no measure of its speed"

_WEIGHTS_HELP = (
    "what the matrices are stored as; native keeps a GGUF file's blocks packed (default: native "
    "for a file with such blocks; otherwise f32 on a CPU, the file's own type on a GPU)"
)


def model_path(text: str, name: str = "--model") -> Path | str:
    """What the argument `name` names, for `load_model`."""
    if text == "demo":
        return demo_folder()
    if not text.startswith(HUB) and not Path(text).exists():
        raise UserError(f"{name}: there is no {text!r}; give demo, {EXPECTED}")
    return text


def load(options: argparse.Namespace, mesh: Mesh | None = None) -> LoadedModel:
    """The model that `--model` and `--weights` ask for, over the devices of a mesh."""
    return load_model(model_path(options.model), options.weights, mesh)
