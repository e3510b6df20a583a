"""The published way to measure: what it cannot see, and what it can."""

import numpy as np
import pytest

from deltakv_jax.codec import parse_spec
from deltakv_jax.evaluation import scoring
from tests.evaluation.conftest import CTX, PACKED


def hidden_of(model, tokens, spec: str, *, reads: str, piece: int = CTX) -> np.ndarray:
    made = scoring.chunk_hidden(model, tokens, spec=parse_spec(spec), piece=piece, reads=reads)
    return np.asarray(made)


@pytest.fixture
def tokens(random_chunks):
    return random_chunks(1, CTX).tokens[0]


def test_in_one_piece_every_format_gives_the_same_bits(random_llama, tokens):
    base, other = (hidden_of(random_llama, tokens, spec, reads="raw") for spec in ("f32", PACKED))
    np.testing.assert_array_equal(other, base)
    assert np.any(hidden_of(random_llama, tokens, PACKED, reads="cache") != base)


def test_it_is_attention_to_exact_keys_and_values(random_llama, tokens):
    got = hidden_of(random_llama, tokens, PACKED, reads="raw")
    want = hidden_of(random_llama, tokens, "f32", reads="cache")
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_pieces_read_what_the_pieces_before_them_left(random_llama, tokens):
    """The first piece is exact, the second reads packed tokens: fewer than a cache-true one."""
    exact = hidden_of(random_llama, tokens, "f32", reads="cache")
    error = lambda reads: np.linalg.norm(
        hidden_of(random_llama, tokens, PACKED, reads=reads, piece=16) - exact, axis=-1
    )
    raw, true = error("raw"), error("cache")
    assert raw[:16].max() < 2e-5
    assert raw[16:].min() > 1e-4
    assert raw.mean() < true.mean()
