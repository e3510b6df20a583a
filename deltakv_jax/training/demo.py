"""The demo model: its sizes, its data, its run from random weights to the finished model."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from deltakv_jax.config import LlamaConfig
from deltakv_jax.model import Llama
from deltakv_jax.training import corpus, train
from deltakv_jax.training.tokens import BOS_ID, stream, train_tokenizer

# 4,000,000 parameters: 8 MB in float16.
CONFIG = LlamaConfig(
    vocab_size=4096,
    width=256,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=64,
    ffn=704,
    context=2048,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)

CHECKPOINT = "state.npz"
STEPS_BETWEEN_CHECKPOINTS = 50
HELD_OUT_TOKENS = 10 * CONFIG.context


@dataclasses.dataclass(frozen=True)
class Data:
    """Token streams of the demo model's texts.

    Attributes:
      docs, code: to train on.
      held_out: never seen, by the name of their text.
      tokenizer: the tokenizer.json that made them.
    """

    docs: np.ndarray
    code: np.ndarray
    held_out: dict[str, np.ndarray]
    tokenizer: Path


def prepare(work: Path) -> Data:
    """Reads the texts and makes the tokenizer, unless it lies in the folder `work` already."""
    work.mkdir(parents=True, exist_ok=True)
    docs, code = corpus.python_docs(), corpus.python_code()
    path = work / "tokenizer.json"
    tokenizer = train_tokenizer([*docs.train, *code.train], CONFIG.vocab_size, path)
    texts = {"python-docs": docs.held_out, "python-code": code.held_out}
    held_out = {name: stream(tokenizer, [text]) for name, text in texts.items()}
    return Data(stream(tokenizer, docs.train), stream(tokenizer, code.train), held_out, path)


def run(data: Data, recipe: train.Recipe, work: Path, done: Callable[[int, float], None]) -> Llama:
    """Trains, from the last checkpoint in `work` if there is one.

    Args:
      data: what to train on.
      recipe: how to train.
      work: the folder of checkpoints.
      done: told of each step: its number, the first being 1, and its loss in nats.
    """
    path = work / CHECKPOINT
    state = train.initial_state(CONFIG, recipe)
    if path.exists():
        state = train.load_state(path, state)
    first = int(state.step)
    windows = train.batches((data.docs, data.code), BOS_ID, recipe, first)
    for step, batch in enumerate(windows, first + 1):
        state, loss = train.train_step(state, batch, recipe=recipe)
        done(step, float(loss))
        if step % STEPS_BETWEEN_CHECKPOINTS == 0 or step == recipe.steps:
            train.save_state(path, state)
    return state.model


def perplexities(model: Llama, data: Data, context: int) -> dict[str, float]:
    """Perplexity of the second halves of chunks of each held-out text, the same at any context."""
    out = {}
    for name, tokens in data.held_out.items():
        windows = train.chunks(tokens[:HELD_OUT_TOKENS], BOS_ID, context)
        losses = [train.second_half_loss(model, window[None]) for window in windows]
        out[name] = math.exp(np.mean(jax.device_get(losses)))
    return out
