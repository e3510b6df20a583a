"""Errors of each layer against a plain loop over the layers' own keys and values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention import apply_rope, attend_plain, rope_tables
from deltakv_jax.codec import parse_spec
from deltakv_jax.evaluation.layers import layer_squares
from tests.evaluation.conftest import CTX, PACKED

SPECS = tuple(map(parse_spec, ("f32", PACKED)))
PIECE = 16


@pytest.fixture
def tokens(random_chunks):
    return jnp.asarray(random_chunks(1, CTX).tokens[0])


@jax.jit
def captured(model, tokens):
    """q, k and v [l 1 t heads d] of the exact model, q and k before RoPE."""

    def attend(layer, q, k, v, rope, seen):
        out, _ = attend_plain(layer, q, k, v, rope)
        return out, [x.at[layer].set(new) for x, new in zip(seen, (q, k, v), strict=True)]

    config = model.config
    heads = (config.heads, config.kv_heads, config.kv_heads)
    empty = [jnp.zeros((config.layers, 1, CTX, count, config.head_dim)) for count in heads]
    return model.hidden(tokens[None], jnp.arange(CTX)[None], empty, attend=attend)[1]


@functools.partial(jax.jit, static_argnums=0)
def exact_and_stored(config, q, k, v):
    """K, V and the attention output of one layer, exact and in each format."""
    rope = rope_tables(config, jnp.arange(CTX)[None])
    still = rope_tables(config, jnp.zeros((1, CTX), jnp.int32))
    still = dataclasses.replace(still, positions=rope.positions)  # rotated by nothing
    q, k = apply_rope(q, rope), apply_rope(k, rope)
    pairs = [(k, v), *((stored(spec.k, k), stored(spec.v, v)) for spec in SPECS)]
    return [(k, v, attend_plain(0, q, k, v, still)[0]) for k, v in pairs]


def stored(side, x):
    """x [1 t k d] as the format gives it back."""
    x = jnp.swapaxes(x, 1, 2)
    lead, groups = x.shape[:2], -(-CTX // side.interval)
    old = {
        key: jnp.zeros((*lead, CTX if leaf.per == "token" else groups, leaf.width), leaf.dtype)
        for key, leaf in side.leaves(x.shape[-1]).items()
    }
    return jnp.swapaxes(side.decode(side.encode(x, jnp.ones(x.shape[:3], bool), old)), 1, 2)


def relative(got, want) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_each_layer_has_its_own_errors(random_llama, tokens):
    squares = layer_squares(random_llama, tokens, specs=SPECS, piece=PIECE)
    got = np.sqrt(squares[..., 0] / squares[..., 1])
    for layer, (q, k, v) in enumerate(zip(*captured(random_llama, tokens), strict=True)):
        exact, *others = exact_and_stored(random_llama.config, q, k, v)
        for errors, other in zip(got, others, strict=True):
            want = [relative(*pair) for pair in zip(other, exact, strict=True)]
            np.testing.assert_allclose(errors[layer], want, rtol=0.02, atol=1e-5)


def test_an_exact_cache_has_no_errors_and_a_packed_one_has(random_llama, tokens):
    squares = np.asarray(layer_squares(random_llama, tokens, specs=SPECS, piece=PIECE))
    assert np.all(squares[0, :, :, 0] < 1e-12 * squares[0, :, :, 1])
    assert np.all(squares[1:, :, :, 0] > 1e-6 * squares[1:, :, :, 1])
    assert np.all(squares[..., 1] == squares[:1, ..., 1])
