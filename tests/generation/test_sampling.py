"""Which tokens may be drawn, how often each is, and what a draw depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltakv_jax.errors import UserError
from deltakv_jax.generation.sampling import (
    GREEDY,
    Sampling,
    candidates,
    make_sampling,
    sample,
    sequence_keys,
)
from tests.generation.helpers import Compilations

V = 23
SHARE = st.floats(0.01, 0.999)
SHARES = st.one_of(st.none(), SHARE)
TOP_K = st.sampled_from([None, 1, 5, V, V + 5])
STEP = jnp.int32(0)

draw = jax.jit(sample)
left = jax.jit(candidates)


def random_logits(seed: int, batch: int = 1, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (batch, V)).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def allowed(logits: np.ndarray, top_k, top_p, min_p) -> set[int] | None:
    """The specification: a set of tokens, shrunk by each filter in turn, in float64.

    None where rounding may decide.
    """
    kept = np.argsort(-logits.astype(np.float64), kind="stable")[: top_k or len(logits)]
    if top_p is not None:
        reached = np.cumsum(softmax(logits[kept].astype(np.float64)))
        if np.abs(reached - top_p).min() < 1e-5:
            return None
        kept = kept[: 1 + np.count_nonzero(reached < top_p)]
    if min_p is not None:
        share = np.exp(logits[kept].astype(np.float64) - logits[kept[0]])
        if np.abs(share - min_p).min() < 1e-5:
            return None
        kept = kept[share >= min_p]
    return set(kept.tolist())


def supports(logits: np.ndarray, how: Sampling) -> list[set[int]]:
    kept, ids = map(np.asarray, left(jnp.asarray(logits), how))
    return [set(row[finite].tolist()) for row, finite in zip(ids, np.isfinite(kept), strict=True)]


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 20), TOP_K, SHARES, SHARES)
@settings(deadline=None, max_examples=25)
def test_the_filters_leave_exactly_what_they_say(seed, scale, top_k, top_p, min_p):
    logits = random_logits(seed, batch=32, scale=scale)
    how = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p)
    for row, got in zip(logits, supports(logits, how), strict=True):
        assert allowed(row, top_k, top_p, min_p) in (got, None)


@given(st.integers(0, 2**32 - 1), SHARE, SHARE, st.floats(1e-30, 1e30))
@settings(deadline=None, max_examples=30)
def test_only_what_the_filters_leave_is_drawn(seed, top_p, min_p, temperature):
    logits, top_k = random_logits(seed, batch=32), 9
    how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    drawn = draw(jnp.asarray(logits), sequence_keys(seed, 32), STEP, how).tolist()
    for row, token in zip(logits, drawn, strict=True):
        tokens = allowed(row, top_k, top_p, min_p)
        assert tokens is None or token in tokens


def shares(logits: np.ndarray, how: Sampling, count: int = 40_000) -> np.ndarray:
    repeated = jnp.broadcast_to(logits, (count, V))
    return np.bincount(draw(repeated, sequence_keys(5, count), STEP, how), minlength=V) / count


@pytest.mark.parametrize(
    "how",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.5, top_p=0.8),
        Sampling(temperature=1.5, top_p=0.8, min_p=0.1, top_k=9),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(how):
    logits = random_logits(3)[0]
    kept = sorted(allowed(logits, how.top_k, how.top_p, how.min_p) or ())
    want = np.zeros(V)
    want[kept] = softmax(logits[kept] / how.temperature)
    error = shares(logits, how) - want
    assert np.abs(error / np.sqrt(np.maximum(want, 1e-4) / 40_000)).max() < 4.5


def test_filters_see_the_probabilities_before_temperature():
    logits = jnp.log(jnp.array([[0.6, 0.3, 0.1]]))
    hot, cold = (Sampling(temperature=t, top_p=0.85, min_p=0.2) for t in (100.0, 0.01))
    for how in (hot, cold):
        assert jnp.isfinite(left(logits, how)[0]).tolist() == [[True, True, False]]


def test_top_p_counts_shares_of_what_top_k_left():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    how = Sampling(temperature=1.0, top_k=2, top_p=0.56)  # 0.4 / 0.7 = 0.571
    assert jnp.isfinite(left(logits, how)[0]).tolist() == [[True, False]]


def test_among_equals_the_lower_id_wins():
    logits = jnp.zeros((1, V))
    ties = np.zeros((1, V), np.float32)
    assert supports(ties, Sampling(temperature=1.0, top_k=3)) == [{0, 1, 2}]
    assert draw(logits, sequence_keys(0, 1), STEP, GREEDY).tolist() == [0]


def test_greedy_takes_the_likeliest():
    logits = random_logits(8, batch=50)
    drawn = draw(jnp.asarray(logits), sequence_keys(0, 50), STEP, GREEDY)
    np.testing.assert_array_equal(drawn, logits.argmax(-1))


def test_a_draw_does_not_depend_on_the_neighbours():
    how = Sampling(temperature=1.0, top_k=9, top_p=0.9, min_p=0.05)
    logits, others = random_logits(1, batch=4), random_logits(2, batch=4)
    keys = sequence_keys(7, 4)
    alone = [
        draw(jnp.asarray(logits[i : i + 1]), keys[i : i + 1], STEP, how).item() for i in range(4)
    ]
    for i in range(4):
        mixed = others.copy()
        mixed[i] = logits[i]
        assert draw(jnp.asarray(mixed), keys, STEP, how)[i] == alone[i]


def test_sequence_i_draws_as_the_first_one_with_seed_plus_i():
    keys = jax.random.key_data(sequence_keys(11, 5))
    for i in range(5):
        np.testing.assert_array_equal(keys[i], jax.random.key_data(sequence_keys(11 + i, 1))[0])


def test_every_step_and_every_seed_draws_anew():
    logits = jnp.zeros((1, 1000))
    how = Sampling(temperature=1.0)
    steps = [draw(logits, sequence_keys(0, 1), jnp.int32(step), how).item() for step in range(20)]
    seeds = [draw(logits, sequence_keys(seed, 1), STEP, how).item() for seed in range(20)]
    assert len(set(steps)) > 15
    assert len(set(seeds)) > 15


def test_other_numbers_are_the_same_program():
    logits, keys = jnp.zeros((1, V)), sequence_keys(0, 1)
    draw(logits, keys, STEP, Sampling(temperature=0.5, top_p=0.9))
    with Compilations() as compiled:
        for temperature, top_p in ((1.5, 0.3), (2.0, 0.99)):
            draw(logits, keys, STEP, Sampling(temperature=temperature, top_p=top_p))
    assert compiled.count == 0


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 (greedy) or more, got -1"),
        ({"temperature": float("nan")}, "temperature must be 0 (greedy) or more, got nan"),
        ({"temperature": float("inf")}, "temperature must be 0 (greedy) or more, got inf"),
        ({"temperature": 1.0, "top_k": 0}, "top-k must be 1 or more, got 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top-p must be above 0 and at most 1, got 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top-p must be above 0 and at most 1, got 1.5"),
        ({"temperature": 1.0, "min_p": float("nan")}, "min-p must be above 0 and at most 1"),
        ({"top_k": 5, "min_p": 0.1}, "top-k and min-p without a temperature above 0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings_, message):
    with pytest.raises(UserError) as refused:
        make_sampling(**settings_)
    assert message in str(refused.value)


def test_top_p_1_keeps_every_token():
    assert make_sampling(temperature=1.0, top_p=1.0) == Sampling(temperature=1.0)
