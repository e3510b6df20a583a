"""Trains the demo model and writes it into the package, in Hugging Face's layout.

    python scripts/train_demo.py

1300 steps of 4096 tokens (the texts to train on have 2.4 million), the last fifth of them in
windows of 2048 tokens and the others of 512. That took 75 minutes on two cores that were busy with
other work too. Reached on the held-out texts of Python 3.11, by `scripts/perplexity.py --kv f32`:

    text         context 512  context 2048
    python-docs        51.29         47.01
    python-code        22.44         22.08

A kill loses little: the same command goes on from the last checkpoint, and in the first half of the
steps with another `--steps` too.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from deltakv_jax.cli import arguments, progress
from deltakv_jax.training import demo
from deltakv_jax.training.tokens import BOS, EOS
from deltakv_jax.training.train import Recipe
from deltakv_jax.weights import demo_folder, save_model


def main() -> int:
    """The command; returns its exit status."""
    parser = make_parser()
    options = parser.parse_args()
    return arguments.run(lambda: train(options), prog=parser.prog)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    work = Path(tempfile.gettempdir()) / "train_demo"
    parser = arguments.OneLineParser(description="Trains the demo model.")
    parser.add_argument("--steps", type=int, default=1300, help="of 4096 tokens")
    parser.add_argument("--log-every", type=int, default=50, help="steps between printed losses")
    parser.add_argument("--work", type=Path, default=work, help="folder of the checkpoints")
    parser.add_argument("--out", type=Path, default=demo_folder(), help="folder of the model")
    return parser


def train(options: argparse.Namespace) -> None:
    """Trains, says what was reached, and writes the folder."""
    recipe = Recipe(steps=options.steps)
    data = demo.prepare(options.work)
    with progress.shown(recipe.steps, "steps") as advance:
        reached = 0

        def done(step: int, loss: float) -> None:
            nonlocal reached
            advance(step - reached)
            reached = step
            if step % options.log_every == 0:
                print(f"step {step}: loss {loss:.3f}", flush=True)

        model = demo.run(data, recipe, options.work, done)
    for context in (recipe.context, recipe.long_context):
        for name, value in demo.perplexities(model, data, context).items():
            print(f"{name} at context {context}: perplexity {value:.3f}")
    save_model(options.out, model, data.tokenizer, bos=BOS, eos=EOS)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main())
