"""The decode loop: its tokens, why it stops, what it hands over and when."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.generation import decode as decode_module
from deltakv_jax.generation.decode import Decoded, Stop, decode
from deltakv_jax.generation.sampling import Sampling, sequence_keys
from deltakv_jax.generation.steps import decode_step, prefill
from tests.cache.material import random_bits
from tests.generation.helpers import (
    CAPACITY,
    CONFIG,
    Compilations,
    empty,
    plain_logits,
    tokens_of,
)
from tests.models import random_model

LENGTHS = 35, 40  # of two prompts that go in one piece
NEVER = CONFIG.vocab_size, CONFIG.vocab_size + 1  # two ends that no sequence draws
DRAWN = Sampling(temperature=0.8, top_k=30, min_p=0.02)
PACKED = "delta:interval=8/q8_0"


def begin(model, *lengths: int):
    """The logits and the cache after prompts of these lengths."""
    prompts = [tokens_of(length) for length in lengths]
    return prefill(model, prompts, empty("f32", batch=len(lengths)))


def go_on(model, logits, cache, *, eos_ids=NEVER, **how: Any) -> Decoded:
    """Two sequences, and as many ends: what one test compiles is there for the others."""
    return decode(model, logits, cache, eos_ids=eos_ids, **how)


def full_of_bits():
    """A packed cache that holds 30 and 20 random tokens, and logits to go on from."""
    cache = random_bits(empty(PACKED, batch=2))
    logits = np.random.default_rng(0).standard_normal((2, CONFIG.vocab_size))
    held = dataclasses.replace(cache, lengths=jnp.array([30, 20]))
    return jnp.asarray(logits, jnp.float32), held


def test_greedy_tokens_are_those_of_a_plain_forward_pass(model):
    made = go_on(model, *begin(model, *LENGTHS), max_new_tokens=24)
    for length, tokens in zip(LENGTHS, made.tokens, strict=True):
        plain = plain_logits(model, tokens_of(length) + tokens).argmax(axis=-1)
        assert plain[length - 1 : -1].tolist() == tokens
    assert made.stops == [Stop.LIMIT, Stop.LIMIT]


def test_the_loop_gives_the_tokens_of_single_steps(model):
    made = go_on(model, *full_of_bits(), max_new_tokens=20)
    (logits, cache), single = full_of_bits(), []
    for _ in range(20):
        single.append(jnp.argmax(logits, axis=-1))
        logits, cache = decode_step(model, single[-1], cache)
    assert made.tokens == np.transpose(single).tolist()


def test_the_cache_holds_all_but_the_last_token_drawn(model):
    made = go_on(model, *begin(model, *LENGTHS), max_new_tokens=7)
    assert made.cache.lengths.tolist() == [length + 6 for length in LENGTHS]
    logits, _ = decode_step(model, jnp.array([row[-1] for row in made.tokens]), made.cache)
    longer = go_on(model, *begin(model, *LENGTHS), max_new_tokens=8)
    nexts = jnp.argmax(logits, axis=-1).tolist()
    assert longer.tokens == [[*row, token] for row, token in zip(made.tokens, nexts, strict=True)]


def test_limit_callback_and_seed_are_the_same_program(model):
    logits, cache = begin(model, LENGTHS[0])
    made = decode(model, logits, cache, max_new_tokens=1, sampling=DRAWN)
    keys = [sequence_keys(seed, 1) for seed in range(3)]
    with Compilations() as compiled:
        for limit, key in zip((0, 5, 9), keys, strict=True):
            seen = []
            made = decode(
                model,
                logits,
                made.cache,
                max_new_tokens=limit,
                sampling=DRAWN,
                keys=key,
                on_step=seen.append,
            )
            assert len(made.tokens[0]) == limit
            assert list(itertools.chain(*seen)) == [*made.tokens[0]] or limit == 0
    assert compiled.count == 0


def test_a_sequence_stops_at_its_end_and_the_others_go_on(model):
    free = go_on(model, *begin(model, *LENGTHS), max_new_tokens=20)
    eos = free.tokens[0][5], CONFIG.vocab_size - 1
    made = go_on(model, *begin(model, *LENGTHS), max_new_tokens=20, eos_ids=eos)
    for row, got, stop in zip(free.tokens, made.tokens, made.stops, strict=True):
        ends = [i for i, token in enumerate(row) if token in eos]
        assert got == row[: ends[0] if ends else None]
        assert stop == (Stop.EOS if ends else Stop.LIMIT)
    assert made.stops == [Stop.EOS, Stop.LIMIT]
    assert made.cache.lengths[0] == LENGTHS[0] + len(made.tokens[0])


def test_a_sequence_that_has_ended_stays_as_it_is(model):
    """Every bit of it, while its neighbour goes on."""
    logits, cache = full_of_bits()
    before = jax.tree.map(np.asarray, cache)
    made = go_on(model, logits.at[1].set(jnp.nan), cache, max_new_tokens=4)
    assert made.stops == [Stop.LIMIT, Stop.NON_FINITE]
    assert made.cache.lengths.tolist() == [33, 20]
    leaves = jax.tree.leaves(before.stacks), jax.tree.leaves(made.cache.stacks)
    for was, now in zip(*leaves, strict=True):
        assert was[:, 1].tobytes() == np.asarray(now[:, 1]).tobytes()
        assert was[:, 0].tobytes() != np.asarray(now[:, 0]).tobytes()


def test_a_full_cache_stops_the_sequence_that_fills_it(model):
    made = go_on(model, *begin(model, 10, 40), max_new_tokens=30)
    assert made.stops == [Stop.LIMIT, Stop.CACHE_FULL]
    assert [len(row) for row in made.tokens] == [30, CAPACITY - 40 + 1]
    assert made.cache.lengths.tolist() == [39, CAPACITY]


def test_a_prompt_that_fills_the_cache_still_gives_a_token(model):
    made = go_on(model, *begin(model, CAPACITY, 10), max_new_tokens=5)
    assert made.stops == [Stop.CACHE_FULL, Stop.LIMIT]
    assert made.tokens[0] == [plain_logits(model, tokens_of(CAPACITY))[-1].argmax()]


def test_no_token_is_made_where_none_is_asked_for(model):
    made = go_on(model, *begin(model, *LENGTHS), max_new_tokens=0)
    assert made.tokens == [[], []]
    assert made.stops == [Stop.LIMIT, Stop.LIMIT]
    assert tuple(made.cache.lengths.tolist()) == LENGTHS


def test_logits_that_are_not_finite_stop_their_sequence(model):
    logits, cache = begin(model, *LENGTHS)
    made = go_on(model, logits.at[1, 3].set(jnp.nan), cache, max_new_tokens=4)
    assert made.stops == [Stop.LIMIT, Stop.NON_FINITE]
    assert [len(row) for row in made.tokens] == [4, 0]


def test_a_model_that_overflows_later_stops_then(model):
    logits, cache = begin(model, *LENGTHS)
    broken = random_model(CONFIG)
    broken.final_norm[...] = jnp.full_like(broken.final_norm[...], jnp.inf)
    made = go_on(broken, logits, cache, max_new_tokens=9)
    assert made.stops == [Stop.NON_FINITE, Stop.NON_FINITE]
    assert [len(row) for row in made.tokens] == [1, 1]


def test_a_text_does_not_depend_on_its_neighbours(model):
    keys = sequence_keys(3, 2)
    made = decode(model, *begin(model, *LENGTHS), max_new_tokens=20, sampling=DRAWN, keys=keys)
    for i, length in enumerate(LENGTHS):
        alone = decode(
            model, *begin(model, length), max_new_tokens=20, sampling=DRAWN, keys=keys[i : i + 1]
        )
        assert made.tokens[i] == alone.tokens[0]


def test_steps_are_handed_over_in_order(model):
    seen = []
    made = go_on(model, *begin(model, 10, 40), max_new_tokens=20, on_step=seen.append)
    assert [list(row) for row in zip(*seen, strict=True)] == made.tokens


def test_steps_are_handed_over_while_the_loop_runs(model):
    """What the taker raises ends the loop long before its limit, and is raised again."""
    channels = []

    def interrupt(step):
        channels.extend(decode_module._Channel.by_number.values())
        raise KeyboardInterrupt

    logits, cache = jnp.zeros((1, CONFIG.vocab_size)), empty("f32", capacity=20_000)
    with pytest.raises(KeyboardInterrupt):
        decode(model, logits, cache, max_new_tokens=10**6, on_step=interrupt)
    assert channels[0].steps.qsize() < 10_000
    assert not decode_module._Channel.by_number


def test_the_cache_is_donated(model):
    logits, cache = begin(model, *LENGTHS)
    made = go_on(model, logits, cache, max_new_tokens=3)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((logits, made.cache)))
    assert np.isfinite(made.seconds)
