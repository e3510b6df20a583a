"""The programs against the plainest statement of what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention import attend_plain
from deltakv_jax.codec import parse_spec
from deltakv_jax.evaluation import scoring
from tests.evaluation.conftest import CTX, PACKED


def hidden_of(model, tokens, spec: str = "f32", piece: int = CTX):
    return scoring.chunk_hidden(model, tokens, spec=parse_spec(spec), piece=piece)


@jax.jit
def plain_hidden(model, tokens):
    hidden, _ = model.hidden(tokens[None], jnp.arange(len(tokens))[None], None, attend=attend_plain)
    return hidden[0]


@pytest.fixture
def tokens(random_chunks):
    return jnp.asarray(random_chunks(1, CTX).tokens[0])


@pytest.mark.parametrize("piece", [1, 7, CTX])
def test_an_f32_cache_gives_the_plain_forward_pass_however_it_is_fed(random_llama, tokens, piece):
    got = hidden_of(random_llama, tokens, piece=piece)
    np.testing.assert_allclose(got, plain_hidden(random_llama, tokens), atol=2e-5)


def test_attention_reads_what_is_packed(random_llama, tokens):
    """Every hidden state moves by about what the format's step allows, the first included."""
    got, want = hidden_of(random_llama, tokens, PACKED), plain_hidden(random_llama, tokens)
    error = np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)
    assert np.all(error > 1e-4)
    assert error.max() < 0.6


@pytest.mark.parametrize(
    ("ctx", "sequential", "piece"),
    [(512, False, 512), (513, False, 257), (16384, False, 512), (40, False, 40), (512, True, 1)],
)
def test_pieces_are_few_and_equal(ctx, sequential, piece):
    assert scoring.piece_length(ctx, sequential=sequential) == piece


def test_scores_are_those_of_the_full_distributions(random_llama, tokens):
    hidden = (plain_hidden(random_llama, tokens), hidden_of(random_llama, tokens, PACKED))
    got = scoring.score(random_llama, hidden, tokens, first=CTX // 2)
    at = np.arange(CTX // 2, CTX - 1)
    logits = jax.jit(lambda model: jnp.stack([model.logits(h[at]) for h in hidden]))(random_llama)
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert got.nll.shape == (2, CTX // 2 - 1)
    want = -log_p[:, np.arange(len(at)), np.asarray(tokens)[at + 1]]
    np.testing.assert_allclose(got.nll, want, rtol=1e-6)
    want = (np.exp(log_p[0]) * (log_p[0] - log_p)).sum(-1)
    np.testing.assert_allclose(got.kld[1], want[1], rtol=1e-4)
    np.testing.assert_array_equal(got.same_top, log_p.argmax(-1) == log_p[0].argmax(-1))


def test_the_base_against_itself_is_exactly_zero(random_llama, tokens):
    hidden = hidden_of(random_llama, tokens, PACKED)
    got = scoring.score(random_llama, (hidden, jnp.array(hidden)), tokens, first=CTX // 2)
    assert not np.any(got.kld)
    assert np.all(got.same_top)


def test_scores_do_not_depend_on_how_many_are_made_at_once(random_llama, tokens, monkeypatch):
    hidden = (plain_hidden(random_llama, tokens), hidden_of(random_llama, tokens, PACKED))
    whole = scoring.score(random_llama, hidden, tokens, first=CTX // 2)
    monkeypatch.setattr(scoring, "MAX_LOGITS", 8 * random_llama.config.vocab_size)
    pieces = scoring.score(random_llama, hidden, tokens, first=CTX // 2 + 1)  # not yet traced
    for got, want in zip(pieces, whole, strict=True):
        np.testing.assert_allclose(got, want[:, 1:], rtol=1e-5, atol=1e-7)


def test_logits_that_are_not_finite_are_seen(random_llama, tokens):
    hidden = plain_hidden(random_llama, tokens)
    got = scoring.score(random_llama, (hidden, hidden.at[30].set(jnp.inf)), tokens, first=CTX // 2)
    assert np.all(got.finite[0])
    np.testing.assert_array_equal(~got.finite[1], np.arange(CTX // 2, CTX - 1) == 30)


@jax.jit
def divergence(p, q):
    """Of softmax(p) from softmax(q)."""
    return scoring.kl_divergence(*map(jax.nn.log_softmax, (p, q)))


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 50.0])
def test_kl_divergence_is_right_at_every_size(size):
    """From that of a 16-bit cache, far below float32's step, to that of garbage."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (64, 500))
    log_p, log_q = (
        x - np.log(np.exp(x).sum(-1, keepdims=True))
        for x in (logits, logits + size * rng.normal(size=logits.shape))
    )
    want = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    got = np.asarray(divergence(*(np.float32(x) for x in (log_p, log_q))))
    assert got.min() >= 0
    np.testing.assert_allclose(got, want, rtol=2e-2 if size < 1e-3 else 1e-3)


def test_kl_divergence_holds_where_the_ratio_overflows():
    p, q = jnp.array([0.0, -200.0]), jnp.array([-200.0, 0.0])
    assert divergence(p, q) == pytest.approx(200)
