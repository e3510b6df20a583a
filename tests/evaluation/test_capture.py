"""What is captured is what the layers make, whatever the pieces."""

import jax
import jax.numpy as jnp
import numpy as np

from deltakv_jax.attention import attend_plain, inverse_frequencies
from deltakv_jax.evaluation import scoring
from deltakv_jax.evaluation.capture import Captured, capture

CTX = 24


def seen_by_attention(model, tokens) -> tuple[np.ndarray, np.ndarray]:
    """K before RoPE and V [l k t d], taken while the layers run one after the other."""
    seen = {}

    def attend(layer, q, k, v, rope, cache):
        jax.debug.callback(lambda layer, k, v: seen.update({int(layer): (k[0], v[0])}), layer, k, v)
        return attend_plain(layer, q, k, v, rope, cache)

    positions = jnp.arange(len(tokens))[None]
    jax.jit(lambda: model.hidden(tokens[None], positions, None, attend=attend)[0])()
    jax.effects_barrier()
    k, v = zip(*(seen[layer] for layer in sorted(seen)), strict=True)
    return np.swapaxes(k, 1, 2), np.swapaxes(v, 1, 2)


def rotated(k: np.ndarray, config) -> np.ndarray:
    """RoPE by complex numbers: value i of a head is the real part, i + d/2 the imaginary one."""
    first, second = np.split(k.astype(np.float64), 2, axis=-1)
    angles = np.arange(k.shape[-2])[:, None] * inverse_frequencies(config).astype(np.float64)
    turned = (first + 1j * second) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def test_the_arrays_are_those_of_the_layers(random_llama, random_chunks):
    tokens = jnp.asarray(random_chunks(1, CTX).tokens[0])
    k, v = seen_by_attention(random_llama, tokens)
    got = capture(random_llama, tokens)
    assert got.shape == (2, 3, 2, CTX, 32)
    np.testing.assert_allclose(got[:, 0], k, atol=2e-5)
    np.testing.assert_allclose(got[:, 1], rotated(k, random_llama.config), atol=2e-5)
    np.testing.assert_allclose(got[:, 2], v, atol=2e-5)


def test_a_long_chunk_goes_in_pieces(random_llama, random_chunks, monkeypatch):
    tokens = jnp.asarray(random_chunks(1, CTX).tokens[0])
    whole = capture(random_llama, tokens)[..., :20, :]
    monkeypatch.setattr(scoring, "MAX_PIECE", 7)
    assert scoring.piece_length(20, sequential=False) == 7  # the last piece has one of padding
    np.testing.assert_allclose(capture(random_llama, tokens[:20]), whole, atol=2e-5)


def test_every_chunk_is_captured_alone_and_as_often_as_asked(random_llama, random_chunks):
    chunks, told = random_chunks(2, CTX).tokens, []
    captured = Captured(random_llama, chunks, told.append)
    for _ in range(2):
        for got, chunk in zip(captured, chunks, strict=True):
            np.testing.assert_array_equal(got, capture(random_llama, jnp.asarray(chunk)))
    assert told == [1, 1, 1, 1]
