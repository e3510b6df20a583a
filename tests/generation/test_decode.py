"""The decode loop: its tokens, why it stops, what it hands over and when."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax import attention
from deltakv_jax.generation import decode as decode_module
from deltakv_jax.generation.decode import Stop, decode
from deltakv_jax.generation.sampling import Sampling, sequence_keys
from deltakv_jax.generation.steps import decode_step, prefill
from tests.generation.helpers import Compilations, empty, random_model, tokens_of

CAPACITY = 64


def begin(model, *lengths: int, spec: str = "f32", capacity: int = CAPACITY):
    """The logits and the cache after prompts of these lengths."""
    prompts = [tokens_of(length) for length in lengths]
    return prefill(model, prompts, empty(spec, capacity, batch=len(lengths)))


def plain_argmax(model, tokens: list[int]) -> list[int]:
    """The likeliest next token after each of `tokens`, by a forward pass without a cache."""
    ids = jnp.array(tokens)[None]
    positions = jnp.arange(ids.shape[1])[None]
    hidden, _ = model.hidden(ids, positions, None, attend=attention.attend_plain)
    return jnp.argmax(model.logits(hidden[0]), axis=-1).tolist()


def test_greedy_tokens_are_those_of_a_plain_forward_pass(model):
    made = decode(model, *begin(model, 10), max_new_tokens=40)
    whole = tokens_of(10) + made.tokens[0]
    assert plain_argmax(model, whole)[9:-1] == made.tokens[0]
    assert made.stops == [Stop.LIMIT]


@pytest.mark.parametrize("spec", ["delta:interval=8", "q8_0/q4_0"])
def test_the_loop_gives_the_tokens_of_single_steps(model, spec):
    logits, cache = begin(model, 10, spec=spec)
    single = []
    for _ in range(20):
        single.append(jnp.argmax(logits[0]).item())
        logits, cache = decode_step(model, jnp.array(single[-1:]), cache)
    made = decode(model, *begin(model, 10, spec=spec), max_new_tokens=20)
    assert made.tokens == [single]


def test_the_cache_holds_all_but_the_last_token_drawn(model):
    made = decode(model, *begin(model, 10), max_new_tokens=7)
    assert made.cache.lengths.tolist() == [16]
    logits, _ = decode_step(model, jnp.array(made.tokens[0][-1:]), made.cache)
    longer = decode(model, *begin(model, 10), max_new_tokens=8)
    assert longer.tokens[0] == [*made.tokens[0], jnp.argmax(logits[0]).item()]


def test_limit_callback_and_seed_are_the_same_program(model):
    how = Sampling(temperature=0.7, top_k=20)
    logits, cache = begin(model, 10)
    made = decode(model, logits, cache, max_new_tokens=1, sampling=how)
    keys = [sequence_keys(seed, 1) for seed in range(3)]
    with Compilations() as compiled:
        for limit, key in zip((0, 5, 9), keys, strict=True):
            seen = []
            made = decode(
                model,
                logits,
                made.cache,
                max_new_tokens=limit,
                sampling=how,
                keys=key,
                on_step=seen.append,
            )
            assert len(made.tokens[0]) == limit
            assert list(itertools.chain(*seen)) == [*made.tokens[0]] or limit == 0
    assert compiled.count == 0


def test_a_sequence_stops_at_its_end_and_the_others_go_on(model):
    free = decode(model, *begin(model, 10, 20), max_new_tokens=30)
    eos = free.tokens[0][5]
    made = decode(model, *begin(model, 10, 20), max_new_tokens=30, eos_ids=[eos, 96])
    for row, got, stop in zip(free.tokens, made.tokens, made.stops, strict=True):
        ends = [i for i, token in enumerate(row) if token in (eos, 96)]
        assert got == row[: ends[0] if ends else None]
        assert stop == (Stop.EOS if ends else Stop.LIMIT)
    assert made.stops[0] == Stop.EOS
    assert made.cache.lengths[0] == 10 + len(made.tokens[0])


def test_a_full_cache_stops_the_sequence_that_fills_it(model):
    made = decode(model, *begin(model, 10, 40), max_new_tokens=30)
    assert made.stops == [Stop.LIMIT, Stop.CACHE_FULL]
    assert [len(row) for row in made.tokens] == [30, CAPACITY - 40 + 1]
    assert made.cache.lengths.tolist() == [39, CAPACITY]


def test_a_prompt_that_fills_the_cache_still_gives_a_token(model):
    made = decode(model, *begin(model, CAPACITY), max_new_tokens=5)
    assert made.stops == [Stop.CACHE_FULL]
    assert made.tokens == [[plain_argmax(model, tokens_of(CAPACITY))[-1]]]


def test_no_token_is_made_where_none_is_asked_for(model):
    made = decode(model, *begin(model, 10), max_new_tokens=0)
    assert made.tokens == [[]]
    assert made.stops == [Stop.LIMIT]
    assert made.cache.lengths.tolist() == [10]


def test_logits_that_are_not_finite_stop_their_sequence(model):
    logits, cache = begin(model, 10, 20)
    made = decode(model, logits.at[1, 3].set(jnp.nan), cache, max_new_tokens=4)
    assert made.stops == [Stop.LIMIT, Stop.NON_FINITE]
    assert [len(row) for row in made.tokens] == [4, 0]


def test_a_model_that_overflows_later_stops_then():
    model = random_model(seed=1)
    logits, cache = begin(model, 10)
    model.final_norm[...] = jnp.full_like(model.final_norm[...], jnp.inf)
    made = decode(model, logits, cache, max_new_tokens=9)
    assert made.stops == [Stop.NON_FINITE]
    assert len(made.tokens[0]) == 1


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=0.8, top_k=30, min_p=0.02)])
def test_a_text_does_not_depend_on_its_neighbours(model, how):
    keys = sequence_keys(3, 3)
    lengths = (10, 20, 15)
    made = decode(model, *begin(model, *lengths), max_new_tokens=20, sampling=how, keys=keys)
    for i, length in enumerate(lengths):
        alone = decode(
            model, *begin(model, length), max_new_tokens=20, sampling=how, keys=keys[i : i + 1]
        )
        assert made.tokens[i] == alone.tokens[0]


def test_steps_are_handed_over_in_order(model):
    seen = []
    made = decode(model, *begin(model, 10, 20), max_new_tokens=30, on_step=seen.append)
    assert [list(row) for row in zip(*seen, strict=True)] == made.tokens


def test_steps_are_handed_over_while_the_loop_runs(model):
    """What the taker raises ends the loop long before its limit, and is raised again."""
    channels = []

    def interrupt(step):
        channels.extend(decode_module._Channel.by_number.values())
        raise KeyboardInterrupt

    logits, cache = begin(model, 10, capacity=20_000)
    with pytest.raises(KeyboardInterrupt):
        decode(model, logits, cache, max_new_tokens=10**6, on_step=interrupt)
    assert channels[0].steps.qsize() < 10_000
    assert not decode_module._Channel.by_number


def test_the_cache_is_donated(model):
    logits, cache = begin(model, 10)
    made = decode(model, logits, cache, max_new_tokens=3)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((logits, made.cache)))
    assert np.isfinite(made.seconds)
