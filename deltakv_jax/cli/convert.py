"""`deltakv convert`, the same as `python scripts/convert.py`."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from deltakv_jax.cli import arguments, progress
from deltakv_jax.config import LlamaConfig
from deltakv_jax.model import Llama
from deltakv_jax.weights.checkpoint import Checkpoint, check_folder, save_checkpoint
from deltakv_jax.weights.load import EXPECTED, open_model, read_weights
from deltakv_jax.weights.roles import layer_shapes, model_shapes
from deltakv_jax.weights.source import Source, Tensor

Say = Callable[[str], None]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Converts the model that the arguments name; returns the exit status."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    say = lambda line: print(arguments.one_line(parser.prog, line), end="", file=sys.stderr)
    return arguments.run(lambda: convert(options, say), prog=parser.prog)


def make_parser(prog: str | None) -> arguments.OneLineParser:
    """The options of this command."""
    parser = arguments.OneLineParser(
        prog, description="Writes a model as a checkpoint of ready weights, for --model."
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help=f"demo, {EXPECTED} of the hub")
    add("dest", metavar="DEST", type=Path, help="a new folder, or one that this command wrote")
    arguments.add_weights_argument(parser)
    return parser


def convert(options: argparse.Namespace, say: Say) -> None:
    """Reads the source and writes the checkpoint."""
    check_folder(options.dest)
    opened = open_model(arguments.model_path(options.source, "SOURCE"))
    opened.tokenizer()  # what is wrong with it should not show after the weights
    model = _read(opened, options.weights)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    say(f"writing {size / 1e6:,.1f} MB of weights to {options.dest}")
    save_checkpoint(options.dest, opened, model)
    print(f"{options.dest}: {opened.name} as {' and '.join(Checkpoint(options.dest).kinds)}")


def _read(opened: Source | Checkpoint, weights: str | None) -> Llama:
    if isinstance(opened, Checkpoint):
        return read_weights(opened, weights)
    config = opened.config
    total = len(model_shapes(config)) + len(layer_shapes(config)) * config.layers
    with progress.shown(total, "tensors") as advance:
        return read_weights(_Watched(opened, advance), weights)


class _Watched:
    """A source that tells of every tensor that is read from it."""

    def __init__(self, source: Source, advance: Callable[[int], None]):
        self._source, self._advance = source, advance
        self.name: str = source.name
        self.config: LlamaConfig = source.config
        self.check_all_used = source.check_all_used
        self.tokenizer = source.tokenizer
        self.save_tokenizer = source.save_tokenizer

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        tensor = self._source.tensor(role, layer)
        watched = {name: self._watch(getattr(tensor, name)) for name in ("read", "values")}
        return dataclasses.replace(tensor, **watched)

    def _watch(self, read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        def watched() -> np.ndarray:
            values = read()
            self._advance(1)
            return values

        return watched
