"""How fast a model decodes with packed weights, against the same model with dense ones.

    python scripts/bench/weights.py [--json FILE]

takes about three minutes on two cores and 11 GB of memory. Nothing else should run. A random Llama
of 1.03 billion weights is loaded as f32, bf16, q8_0 and q4_0; then steps of the compiled decode
loop, batch 1, take turns. It prints, for each, the bytes of weights that a step reads over the
bandwidth of copying 1 GiB, and the time of a step with q4_0 over those with bf16 and f32: at most
1.00.

Figures are medians. A goal that is missed says NO and does not change the exit status.
"""

import functools
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deltakv_jax.cli import arguments
from deltakv_jax.config import LlamaConfig
from deltakv_jax.model import Llama
from deltakv_jax.weights import Tokenizer
from deltakv_jax.weights.assemble import assemble
from deltakv_jax.weights.roles import Shape, layer_shapes, model_shapes
from deltakv_jax.weights.source import Tensor
from scripts.bench import inference, model_speed, timing
from scripts.bench.results import Row
from scripts.bench.shapes import LLAMA_1B

WEIGHTS = ("f32", "bf16", "q8_0", "q4_0")
PACKED, DENSE = "q4_0", ("bf16", "f32")
KV = "f16"
SHAPE = "llama_1b"
GOAL = 1.0


class RandomSource:
    """A checkpoint in float32 whose values are drawn when they are read.

    Attributes:
      name: of the model.
      config: what the model is.
    """

    def __init__(self, config: LlamaConfig):
        """Takes what the model is."""
        self.name, self.config = "random", config

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        """A matrix as a Llama begins its training with; ones for a norm."""
        shapes = model_shapes(self.config) if layer is None else layer_shapes(self.config)
        read = functools.partial(_draw, f"{role} {layer}", shapes[role])
        return Tensor(role, "f32", shapes[role], read, read)

    def check_all_used(self) -> None:
        """There is nothing else in it."""

    def tokenizer(self) -> Tokenizer:
        """There is none."""
        raise NotImplementedError

    def save_tokenizer(self, folder: Path) -> None:
        """There is none."""
        raise NotImplementedError


def _draw(name: str, shape: Shape) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32)
    return (values - 0.5) * np.float32((12 / shape[1]) ** 0.5)


def rows(config: LlamaConfig) -> list[Row]:
    """A row for each type of weights, and q4_0 against the dense types."""
    copies, models = timing.copy_timers(), _models(config)
    timers = {name: model_speed.decode_timer(model, KV) for name, model in models.items()}
    times = timing.interleaved({**copies, **timers}, model_speed.DECODE_ROUNDS)
    copy, seconds = timing.fastest(times, copies)
    bandwidth = f"{copy}, {timing.COPY_BYTES / seconds / 1e9:.4g} GB/s"
    sizes = {name: model_speed.weight_bytes(model) for name, model in models.items()}
    against_copy = [
        _bandwidth_row(name, sizes[name], times[name], seconds, bandwidth) for name in WEIGHTS
    ]
    return against_copy + [_step_row(times, dense) for dense in DENSE]


def _models(config: LlamaConfig) -> dict[str, Llama]:
    models = {}
    for name in WEIGHTS:
        sys.stderr.write(f"loading {name}\n")
        models[name] = assemble(RandomSource(config), name)
    return models


def _bandwidth_row(name: str, size: int, seconds: float, copied: float, copy: str) -> Row:
    return Row(
        part="weights",
        shape=SHAPE,
        what=name,
        figure=size / seconds / 1e9,
        unit="GB/s",
        ratio=(size / seconds) / (timing.COPY_BYTES / copied),
        against=f"{copy}; weights {size / 1e6:.4g} MB, {1 / seconds:.4g} tok/s",
    )


def _step_row(times: Mapping[str, float], dense: str) -> Row:
    return Row(
        part="weights",
        shape=SHAPE,
        what=f"{PACKED}, a step",
        figure=1e3 * times[PACKED],
        unit="ms",
        ratio=times[PACKED] / times[dense],
        most=GOAL,
        against=f"{dense}, {1e3 * times[dense]:.4g} ms",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measures; returns the exit status."""
    parser = arguments.OneLineParser("weights.py", description="Speed of packed weights.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(argv)
    measure = lambda: inference.report(options.json, lambda: rows(LLAMA_1B))
    return arguments.run(measure, prog=parser.prog)


if __name__ == "__main__":
    sys.exit(main())
