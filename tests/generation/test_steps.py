"""Prefill and decode steps against the plain forward pass, and how many programs they take."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from deltakv_jax import attention
from deltakv_jax.cache import make_cache
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.generation import steps
from deltakv_jax.generation.steps import (
    PIECES,
    compile_prefill,
    decode_step,
    forward,
    pieces,
    prefill,
)
from deltakv_jax.model import Llama
from tests.generation.helpers import CONFIG, Compilations, empty, tokens_of


@jax.jit
def plain_logits(model, tokens):
    """The logits [t v] of a float32 forward pass over one whole sequence, without a cache."""
    positions = jnp.arange(len(tokens))[None]
    hidden, _ = model.hidden(tokens[None], positions, None, attend=attention.attend_plain)
    return model.logits(hidden[0])


def test_prefill_gives_the_logits_of_the_last_token(model):
    prompt = tokens_of(45)
    logits, cache = prefill(model, [prompt], empty("f32", 64))
    np.testing.assert_allclose(logits[0], plain_logits(model, jnp.array(prompt))[-1], atol=1e-4)
    assert cache.lengths.tolist() == [45]


def test_a_prompt_of_several_pieces_reads_the_earlier_ones(model, monkeypatch):
    monkeypatch.setattr(steps, "PIECES", (32,))
    prompt = tokens_of(60)
    logits, _ = prefill(model, [prompt], empty("f32", 64))
    np.testing.assert_allclose(logits[0], plain_logits(model, jnp.array(prompt))[-1], atol=1e-4)


def test_prompts_of_any_lengths_make_a_batch(model):
    prompts = [tokens_of(length) for length in (1, 20, 60, 32)]
    logits, cache = prefill(model, prompts, empty("f32", 64, batch=4))
    assert cache.lengths.tolist() == [1, 20, 60, 32]
    for row, prompt in zip(logits, prompts, strict=True):
        alone, _ = prefill(model, [prompt], empty("f32", 64))
        np.testing.assert_allclose(row, alone[0], atol=1e-4)


def test_prompts_follow_what_the_cache_holds(model):
    prompt = tokens_of(50)
    _, cache = prefill(model, [prompt[:17]], empty("f32", 64))
    logits, cache = prefill(model, [prompt[17:]], cache)
    np.testing.assert_allclose(logits[0], plain_logits(model, jnp.array(prompt))[-1], atol=1e-4)
    assert cache.lengths.tolist() == [50]


def test_decode_steps_give_the_logits_of_every_token(model):
    prompt = tokens_of(24)
    cache, rows = empty("f32", 64), []
    for token in prompt:
        logits, cache = decode_step(model, jnp.array([token]), cache)
        rows.append(logits[0])
    np.testing.assert_allclose(rows, plain_logits(model, jnp.array(prompt)), atol=1e-4)


def test_a_sequence_of_count_0_stays_as_it_is(model):
    _, cache = prefill(model, [tokens_of(9), tokens_of(7)], empty("delta", 32, batch=2))
    before = jax.tree.map(np.asarray, cache)
    step = jax.jit(forward)
    _, after = step(model, jnp.array([[5], [6]]), jnp.array([1, 0]), cache)
    assert after.lengths.tolist() == [10, 7]
    for was, now in zip(jax.tree.leaves(before.stacks), jax.tree.leaves(after.stacks), strict=True):
        np.testing.assert_array_equal(was[:, 1], now[:, 1])
        assert not np.array_equal(was[:, 0], now[:, 0]) or was.shape[3] == 1


@given(st.lists(st.integers(1, 1500), min_size=1, max_size=4))
def test_pieces_hold_every_token_once_and_in_order(lengths):
    prompts = [np.arange(1, length + 1).tolist() for length in lengths]
    joined: list[list[int]] = [[] for _ in prompts]
    for tokens, counts in pieces(prompts):
        assert tokens.shape[1] in PIECES
        assert counts.max() > 0
        for row, taken, count in zip(joined, tokens, counts, strict=True):
            row.extend(taken[:count].tolist())
            assert not taken[count:].any()
    assert joined == prompts


def test_padding_is_less_than_what_it_pads():
    for length in range(33, 1200):
        assert sum(tokens.shape[1] for tokens, _ in pieces([[0] * length])) < 2 * length


def test_prompts_of_any_length_compile_a_few_programs(model):
    prefill(model, [tokens_of(5)], empty("q8_0", 1200))  # and what else there is to compile
    with Compilations() as compiled:
        for length in [*range(1, 40, 7), *range(40, 1200, 83), 512, 1024, 1200]:
            prefill(model, [tokens_of(length)], empty("q8_0", 1200))
    assert compiled.count == len(PIECES) - 1


def test_a_growing_sequence_compiles_one_program(model):
    logits, cache = prefill(model, [tokens_of(3)], empty("f32", 80))
    logits, cache = decode_step(model, jnp.argmax(logits, -1), cache)
    with Compilations() as compiled:
        for _ in range(70):
            logits, cache = decode_step(model, jnp.argmax(logits, -1), cache)
    assert compiled.count == 0
    assert cache.lengths.tolist() == [74]


def test_compile_prefill_compiles_all_that_prefill_runs(model):
    cache, prompts = empty("f16", 64), [tokens_of(40)]
    compile_prefill(model, prompts, cache)
    with Compilations() as compiled:
        prefill(model, prompts, cache)
    assert compiled.count == 0


def program_lines(layers: int, specs: tuple[str, ...]) -> int:
    """The lines of the lowered decode step of a model of shapes only."""
    config = dataclasses.replace(CONFIG, layers=layers)
    make = functools.partial(Llama, config, dtype=jnp.float32)
    model = jax.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    kinds = [parse_spec(specs[layer % len(specs)]) for layer in range(layers)]
    cache = jax.eval_shape(
        lambda: make_cache(
            kinds,
            layers=layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            capacity=256,
        )
    )
    tokens = jax.ShapeDtypeStruct((1,), jnp.int32)
    return decode_step.lower(model, tokens, cache).as_text().count("\n")


@pytest.mark.parametrize("specs", [("f16",), ("delta",), ("delta", "q8_0")])
def test_the_program_does_not_grow_with_depth(specs):
    assert program_lines(8, specs) == program_lines(80, specs)


@pytest.mark.parametrize(
    ("lengths", "held", "message"),
    [
        ([40], 0, "prompt 1 has 40 tokens, but the cache has room for 32"),
        ([3, 30], 5, "prompt 2 has 30 tokens, but the cache has room for 27 after the 5 that it"),
        ([4, 0], 0, "prompt 2 is empty"),
        ([4, 4, 4], 0, "3 prompts for a cache of 2 sequences"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(model, lengths, held, message):
    batch = 1 if len(lengths) == 1 else 2
    cache = empty("f32", 32, batch=batch)
    if held:
        _, cache = prefill(model, [tokens_of(held)] * batch, cache)
    with pytest.raises(UserError, match="^" + message):
        prefill(model, [tokens_of(length) for length in lengths], cache)
