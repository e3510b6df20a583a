import dataclasses
import itertools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention.plain import attend_plain
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.model import Llama
from deltakv_jax.training import train
from tests.models import random_model

CONFIG = LlamaConfig(
    vocab_size=16,
    width=8,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    ffn=8,
    context=32,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)
RECIPE = train.Recipe(
    steps=40,
    batch_tokens=128,
    context=16,
    long_context=32,
    learning_rate=0.02,
    warmup=4,
)
BOS = 0


@pytest.fixture(scope="module")
def streams() -> tuple[np.ndarray, np.ndarray]:
    """Two texts in which each token says the next: counting up, and counting by threes."""
    count = np.arange(1000, dtype=np.int32)
    return 1 + count % 15, 1 + 3 * count % 15


# One window length, so that there is one program to compile.
SHORT = dataclasses.replace(RECIPE, long_context=16)


def run(
    streams, state: train.TrainState, until: int = SHORT.steps
) -> tuple[train.TrainState, list[float]]:
    first, losses = int(state.step), []
    for windows in itertools.islice(train.batches(streams, BOS, SHORT, first), until - first):
        state, loss = train.train_step(state, windows, recipe=SHORT)
        losses.append(float(loss))
    return state, losses


@pytest.mark.slow
def test_training_learns_and_can_be_resumed(streams, tmp_path: Path):
    start = train.initial_state(CONFIG, SHORT)
    train.save_state(tmp_path / "start.npz", start)
    whole, losses = run(streams, start)
    assert losses[0] > 2.5
    assert losses[-1] < 1.0
    half, _ = run(streams, train.load_state(tmp_path / "start.npz", abstract()), until=33)
    train.save_state(tmp_path / "half.npz", half)
    resumed, rest = run(streams, train.load_state(tmp_path / "half.npz", abstract()))
    chex.assert_trees_all_equal(resumed, whole)
    assert rest == losses[33:]


def abstract(config: LlamaConfig = CONFIG) -> train.TrainState:
    return jax.eval_shape(lambda: train.initial_state(config, RECIPE))


losses = jax.jit(train.losses)


@jax.jit
def likelihoods(model: Llama, tokens: jax.Array) -> jax.Array:
    """ln p [b t v] of every next token."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model.hidden(tokens, positions, None, attend=attend_plain)
    return jax.nn.log_softmax(model.logits(hidden))


def random_windows() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, 16, (2, 17)), jnp.int32)


def test_the_loss_is_that_of_the_next_token():
    model, windows = random_model(CONFIG), random_windows()
    got, of_all = (np.asarray(make(model, windows)) for make in (losses, likelihoods))
    for row, at in np.ndindex(2, 16):
        expected = -of_all[row, at, windows[row, at + 1]]
        np.testing.assert_allclose(got[row, at], expected, rtol=1e-4, atol=1e-4)


def test_windows_begin_with_bos_and_lengthen_at_the_end(streams):
    shapes = [windows.shape for windows in train.batches(streams, BOS, RECIPE)]
    assert shapes == [(8, 17)] * 32 + [(4, 33)] * 8
    first = next(iter(train.batches(streams, BOS, RECIPE)))
    assert (first[:, 0] == BOS).all()
    steps = np.diff(first[:, 1:]) % 15
    assert set(steps.flat) == {1, 3}
    assert (steps == steps[:, :1]).all()


def test_windows_follow_from_the_seed_and_the_step(streams):
    every = list(train.batches(streams, BOS, RECIPE))
    chex.assert_trees_all_equal(list(train.batches(streams, BOS, RECIPE, start=30)), every[30:])
    other = dataclasses.replace(RECIPE, seed=1)
    assert (next(iter(train.batches(streams, BOS, other))) != every[0]).any()


def test_the_rate_rises_stays_and_falls():
    rate = train.learning_rate(RECIPE)
    got = [np.asarray(rate(step)) for step in (0, 2, 4, 20, 30, 40)]
    np.testing.assert_allclose(got, [0, 0.01, 0.02, 0.02, 0.01, 0], atol=1e-8)


def test_a_run_too_short_for_its_rise_is_refused():
    with pytest.raises(UserError, match=r"7 steps are too few: .* less than the 4 of the rise"):
        dataclasses.replace(RECIPE, steps=7)
    assert dataclasses.replace(RECIPE, steps=8)


def test_the_plateau_does_not_depend_on_the_number_of_steps():
    rate = train.learning_rate(RECIPE)
    longer = train.learning_rate(dataclasses.replace(RECIPE, steps=60))
    for step in range(20):
        np.testing.assert_array_equal(rate(step), longer(step))


def test_chunks_follow_one_another_each_with_bos():
    windows = train.chunks(np.arange(1, 12), BOS, 5)
    np.testing.assert_array_equal(windows, [[BOS, 2, 3, 4, 5], [BOS, 7, 8, 9, 10]])


def test_the_second_half_starts_in_the_middle():
    model, windows = random_model(CONFIG), random_windows()
    expected = np.asarray(losses(model, windows))[:, 8:].mean()
    got = train.second_half_loss(model, windows)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path):
    path = tmp_path / "state.npz"
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract())
    train.save_state(path, state)
    other = abstract(dataclasses.replace(CONFIG, width=4))
    with pytest.raises(UserError, match="is of another model or optimiser; remove it"):
        train.load_state(path, other)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"no array at all"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "state.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged: .*; remove it to start anew"):
        train.load_state(path, abstract())
