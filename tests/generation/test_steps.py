"""Prefill and decode steps against the plain forward pass, and how many programs they take."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltakv_jax.cache import make_cache
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.generation import steps
from deltakv_jax.generation.steps import (
    PIECES,
    compile_prefill,
    decode_step,
    pieces,
    prefill,
)
from tests.generation.helpers import (
    CAPACITY,
    CONFIG,
    Compilations,
    empty,
    plain_logits,
    tokens_of,
)
from tests.models import abstract


def test_prefill_gives_the_logits_of_the_last_token(model):
    prompt = tokens_of(45)
    logits, cache = prefill(model, [prompt], empty("f32"))
    np.testing.assert_allclose(logits[0], plain_logits(model, prompt)[-1], atol=1e-4)
    assert cache.lengths.tolist() == [45]


def test_a_prompt_of_several_pieces_reads_the_earlier_ones(model, monkeypatch):
    monkeypatch.setattr(steps, "PIECES", (32,))
    prompt = tokens_of(60)
    logits, _ = prefill(model, [prompt], empty("f32"))
    np.testing.assert_allclose(logits[0], plain_logits(model, prompt)[-1], atol=1e-4)


@pytest.mark.parametrize("lengths", [(1, 60), (33, 32)])
def test_prompts_of_any_lengths_make_a_batch(model, lengths):
    prompts = [tokens_of(length) for length in lengths]
    logits, cache = prefill(model, prompts, empty("f32", batch=2))
    assert tuple(cache.lengths.tolist()) == lengths
    for row, prompt in zip(logits, prompts, strict=True):
        np.testing.assert_allclose(row, plain_logits(model, prompt)[-1], atol=1e-4)


def test_prompts_follow_what_the_cache_holds(model):
    prompt = tokens_of(50)
    _, cache = prefill(model, [prompt[:17]], empty("f32"))
    logits, cache = prefill(model, [prompt[17:]], cache)
    np.testing.assert_allclose(logits[0], plain_logits(model, prompt)[-1], atol=1e-4)
    assert cache.lengths.tolist() == [50]


def test_decode_steps_give_the_logits_of_every_token(model):
    prompts = [tokens_of(24, seed) for seed in (0, 1)]
    cache, rows = empty("f32", batch=2), []
    for tokens in np.array(prompts).T:
        logits, cache = decode_step(model, jnp.asarray(tokens), cache)
        rows.append(logits)
    want = [plain_logits(model, prompt) for prompt in prompts]
    np.testing.assert_allclose(rows, np.stack(want, axis=1), atol=1e-4)


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


def test_prompts_of_any_length_compile_a_few_programs(model, monkeypatch):
    monkeypatch.setattr(steps, "PIECES", (16, 32))
    prefill(model, [tokens_of(5)], empty("f32", capacity=128))  # and what else there is to compile
    with Compilations() as compiled:
        for length in (*range(1, 128, 7), 16, 17, 32, 128):
            prefill(model, [tokens_of(length)], empty("f32", capacity=128))
    assert compiled.count == 1


def test_a_growing_sequence_compiles_one_program(model):
    token, cache = jnp.array([3, 4]), empty("f32", batch=2)
    decode_step(model, token, empty("f32", batch=2))
    with Compilations() as compiled:
        for _ in range(CAPACITY):
            _, cache = decode_step(model, token, cache)
    assert compiled.count == 0
    assert cache.lengths.tolist() == [CAPACITY, CAPACITY]


def test_compile_prefill_compiles_all_that_prefill_runs(model):
    prompts = [tokens_of(40)]
    cache = empty("f32", capacity=40)  # which no other test has compiled
    with Compilations() as compiled:
        compile_prefill(model, prompts, cache)
    assert compiled.count
    with Compilations() as compiled:
        prefill(model, prompts, cache)
    assert compiled.count == 0


def program_lines(layers: int, specs: tuple[str, ...]) -> int:
    """The lines of the lowered decode step of a model of shapes only."""
    config = dataclasses.replace(CONFIG, layers=layers)
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
    return decode_step.lower(abstract(config), tokens, cache).as_text().count("\n")


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
    cache = empty("f32", capacity=32, batch=1 if len(lengths) == 1 else 2)
    cache = dataclasses.replace(cache, lengths=jnp.full_like(cache.lengths, held))
    with pytest.raises(UserError, match="^" + message):
        prefill(model, [tokens_of(length) for length in lengths], cache)
