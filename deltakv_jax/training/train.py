"""Training of a small Llama on one machine.

Matrices of the blocks are updated by Muon (arXiv 2502.16982), everything else by AdamW, both by
optax. Most steps see short windows; the last part sees the full context. Which windows a step
sees depends on the seed and the step's number alone, so that a run can be resumed.
"""

import dataclasses
import functools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int32
from optax.contrib import MuonDimensionNumbers, muon

from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.model import Llama
from deltakv_jax.training.attention import attend_blocks
from deltakv_jax.typed import typed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
      steps: of the optimiser, in all.
      batch_tokens: tokens per step, a multiple of both contexts.
      context: window of the first steps.
      long_context: window of the last `long_share` of the steps.
      long_share: share of the steps.
      learning_rate: its peak.
      warmup: steps of linear rise.
      fall_share: share of the steps, the last ones, in which a straight line falls to zero. Until
        then nothing depends on `steps`: a run may be resumed with another number of them.
      weight_decay: of the blocks' matrices.
      docs_share: share of the windows that come from the first stream.
      seed: of the weights and windows.
    """

    steps: int
    batch_tokens: int = 4096
    context: int = 512
    long_context: int = 2048
    long_share: float = 0.2
    learning_rate: float = 4e-3
    warmup: int = 100
    fall_share: float = 0.5
    weight_decay: float = 0.05
    docs_share: float = 0.2
    seed: int = 0

    def __post_init__(self):
        plateau = self.steps - round(self.steps * self.fall_share) - self.warmup
        if plateau < 0:
            raise UserError(
                f"{self.steps} steps are too few: a fall over {self.fall_share:.0%} of them leaves "
                f"less than the {self.warmup} of the rise"
            )

    def context_at(self, step: int) -> int:
        """The window of this step."""
        return self.context if step < self.steps * (1 - self.long_share) else self.long_context


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The model and its optimiser's state after `step` steps (int32 [])."""

    model: Llama
    optimizer: optax.OptState
    step: jax.Array


def initial_state(config: LlamaConfig, recipe: Recipe) -> TrainState:
    """Random float32 weights and an optimiser that has seen nothing."""
    model = jax.jit(lambda: Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(recipe.seed)))()
    weights = jax.tree.leaves(model)
    return TrainState(model, optimizer(recipe, weights).init(weights), jnp.int32(0))


def optimizer(recipe: Recipe, weights: list[jax.Array]) -> optax.GradientTransformation:
    """Muon for the stacked matrices [l, out, in], AdamW for embedding and norms.

    Muon's steps are scaled to AdamW's usual size, so that one learning rate serves both.
    """
    matrix = MuonDimensionNumbers(reduction_axis=2, output_axis=1)
    numbers: Any = [matrix if leaf.ndim == 3 else None for leaf in weights]
    rule = muon(
        learning_rate(recipe),
        weight_decay=recipe.weight_decay,
        adam_b2=0.99,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=numbers,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), rule)


def learning_rate(recipe: Recipe) -> optax.Schedule:
    """A rise, a plateau and a fall, by the number of the step."""
    peak, warmup = recipe.learning_rate, recipe.warmup
    falling = round(recipe.steps * recipe.fall_share)
    rise = optax.schedules.linear_schedule(0.0, peak, warmup)
    fall = optax.schedules.linear_schedule(peak, 0.0, falling, recipe.steps - falling - warmup)
    return optax.schedules.join_schedules([rise, fall], [warmup])


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def train_step(
    state: TrainState, windows: Int32[Array, "b n"], *, recipe: Recipe
) -> tuple[TrainState, Float[Array, ""]]:
    """One step on windows of n = context + 1 tokens; returns the mean loss too, in nats."""
    value, gradients = jax.value_and_grad(loss)(state.model, windows)
    weights, tree = jax.tree.flatten(state.model)
    rule = optimizer(recipe, weights)
    updates, memory = rule.update(jax.tree.leaves(gradients), state.optimizer, weights)
    weights = jax.tree.map(jnp.add, weights, updates)
    return TrainState(jax.tree.unflatten(tree, weights), memory, state.step + 1), value


@typed
def loss(model: Llama, windows: Int32[Array, "b n"]) -> Float[Array, ""]:
    """The mean of -ln p over all n - 1 predictions of each window."""
    return jnp.mean(losses(model, windows))


@typed
def losses(model: Llama, windows: Int32[Array, "b n"]) -> Float[Array, "b n-1"]:
    """-ln p of each window's tokens from the second on."""
    inputs, targets = windows[:, :-1], windows[:, 1:]
    positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    hidden, _ = model.hidden(inputs, positions, None, attend=attend_blocks)
    logits = model.logits(hidden)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)


@jax.jit
def second_half_loss(model: Llama, windows: Int32[Array, "b n"]) -> Float[Array, ""]:
    """The mean loss of the predictions that have at least half a window before them."""
    return jnp.mean(losses(model, windows)[:, windows.shape[1] // 2 :])


def batches(
    streams: tuple[np.ndarray, np.ndarray], bos: int, recipe: Recipe, start: int = 0
) -> Iterator[np.ndarray]:
    """The windows [b, context + 1] of each step from `start` on.

    Args:
      streams: token ids of the documents and of the code, each document followed by EOS.
      bos: stands first in each window, as where a text begins.
      recipe: says how many windows, and how long.
      start: the first step.
    """
    for step in range(start, recipe.steps):
        rng = np.random.default_rng([recipe.seed, step])
        context = recipe.context_at(step)
        rows = recipe.batch_tokens // context
        sources = [streams[int(rng.random() >= recipe.docs_share)] for _ in range(rows)]
        yield np.stack([_random_window(rng, stream, context, bos) for stream in sources])


def _random_window(
    rng: np.random.Generator, stream: np.ndarray, context: int, bos: int
) -> np.ndarray:
    start = rng.integers(len(stream) - context + 1)
    return np.concatenate([[bos], stream[start : start + context]]).astype(np.int32)


def chunks(stream: np.ndarray, bos: int, context: int) -> Int32[np.ndarray, "b n"]:
    """A stream cut into windows of n = context tokens, BOS in place of each first one."""
    whole = len(stream) // context * context
    windows = stream[:whole].reshape(-1, context).astype(np.int32)
    windows[:, 0] = bos
    return windows


def save_state(path: Path, state: TrainState) -> None:
    """Writes a checkpoint; a kill while it is written leaves the one before it whole."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, *jax.tree.leaves(state))
    partial.replace(path)


def load_state(path: Path, like: TrainState) -> TrainState:
    """Reads a checkpoint.

    Raises:
      UserError: where it is damaged, or not of a run that began as `like`.
    """
    leaves, tree = jax.tree.flatten(like)
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            loaded = [jnp.asarray(arrays[name]) for name in arrays.files]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {error}; remove it to start anew") from None
    if [leaf.shape for leaf in loaded] != [leaf.shape for leaf in leaves]:
        raise UserError(f"{path} is of another model or optimiser; remove it to start anew")
    return jax.tree.unflatten(tree, loaded)
