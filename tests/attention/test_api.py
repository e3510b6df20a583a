"""`attend` rotates, writes, then reads what is stored, the token's own position included."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention import api, attend, attend_plain, rope_tables
from deltakv_jax.cache import KVCache, advance, make_cache, read
from deltakv_jax.codec import parse_spec
from deltakv_jax.config import LlamaConfig
from tests.cache.material import assert_same_bits

KINDS = ("f32", "q4_0/delta:interval=4", "f32", "delta:interval=6/q8_0")
HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 4, 2, 32, 24
CONFIG = LlamaConfig(
    vocab_size=8,
    width=HEADS * HEAD_DIM,
    layers=len(KINDS),
    heads=HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    ffn=8,
    context=CAPACITY,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    tied=True,
)
LAYERS = [pytest.param(jnp.int32(layer), id=kind) for layer, kind in enumerate(KINDS)]
RNG = np.random.default_rng(0)


def empty(batch: int = 2) -> KVCache:
    return make_cache(
        tuple(map(parse_spec, KINDS)),
        layers=len(KINDS),
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=CAPACITY,
        batch=batch,
    )


@jax.jit
def step(layer, q, k, v, cache, counts):
    """One layer of one step, at the positions that follow what the cache holds."""
    positions = cache.lengths[:, None] + jnp.arange(q.shape[1])
    rope = rope_tables(CONFIG, positions)
    out, written = attend(layer, q, k, v, rope, cache, counts=counts)
    want, _ = attend(layer, q, k, v, rope, cache, counts=counts, implementation="reference")
    return out, written, want


def tokens(count: int, batch: int = 2):
    """q, k and v of `count` tokens."""
    normal = lambda heads: RNG.standard_normal((batch, count, heads, HEAD_DIM)).astype(np.float32)
    return normal(HEADS), normal(KV_HEADS), normal(KV_HEADS)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_output_is_the_reference_over_what_was_written(layer):
    """In every kind of layer of one cache, at every phase of the groups."""
    cache = empty()
    for count in (6, 3, 5):
        counts = jnp.array([count, count - 2])
        out, written, want = step(layer, *tokens(6), cache, counts)
        for b, n in enumerate([count, count - 2]):
            np.testing.assert_allclose(out[b, :n], want[b, :n], atol=1e-5)
        np.testing.assert_array_equal(written.lengths, cache.lengths)
        cache = advance(written, counts)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_token_reads_its_own_position_as_it_is_stored(layer):
    """The first token attends to itself alone: its output is its V as packed."""
    q, k, v = tokens(6)
    out, written, _ = step(layer, q, k, v, empty(), jnp.array([6, 6]))
    stored = np.repeat(jax.jit(read)(written, layer)[1][:, :, 0], HEADS // KV_HEADS, axis=1)
    np.testing.assert_allclose(out[:, 0], stored, atol=1e-6)
    if KINDS[int(layer)] in ("q4_0/delta:interval=4", "delta:interval=6/q8_0"):
        assert abs(out[:, 0] - np.repeat(v[:, 0], HEADS // KV_HEADS, axis=1)).max() > 1e-4


@pytest.mark.parametrize("layer", LAYERS)
def test_a_prompt_and_its_tokens_one_by_one_give_the_same(layer):
    """Cache-true: the third token reads exactly what the cache holds when it is decoded."""
    q, k, v = tokens(6)
    together, whole, _ = step(layer, q, k, v, empty(), jnp.array([6, 6]))
    cache, one = empty(), jnp.array([1, 1])
    for t in range(6):
        part = (np.repeat(x[:, t : t + 1], 6, axis=1) for x in (q, k, v))
        out, cache, _ = step(layer, *part, cache, one)
        cache = advance(cache, one)
        np.testing.assert_allclose(out[:, 0], together[:, t], atol=2e-5)
    assert_same_bits(cache, advance(whole, jnp.array([6, 6])))


def test_with_an_f32_cache_it_is_plain_causal_attention():
    q, k, v = tokens(6)
    out, *_ = step(jnp.int32(0), q, k, v, empty(), jnp.array([6, 6]))
    rope = rope_tables(CONFIG, jnp.tile(jnp.arange(6), (2, 1)))
    want, nothing = jax.jit(attend_plain)(0, q, k, v, rope)
    np.testing.assert_allclose(out, want, atol=1e-5)
    assert nothing is None


def test_padding_reaches_no_other_row_and_is_not_stored():
    layer, counts = jnp.int32(3), jnp.array([4, 1])
    q, k, v = tokens(6)
    padded = np.arange(6) >= np.array(counts)[:, None]
    spoilt = [np.where(padded[:, :, None, None], np.float32("nan"), x) for x in (q, k, v)]
    out, written, _ = step(layer, q, k, v, empty(), counts)
    out_spoilt, written_spoilt, _ = step(layer, *spoilt, empty(), counts)
    np.testing.assert_array_equal(out_spoilt[~padded], out[~padded])
    assert_same_bits(written_spoilt, written)


def test_the_output_has_the_dtype_of_the_queries():
    q, k, v = (jnp.array(x, jnp.bfloat16) for x in tokens(6))
    rope, counts = rope_tables(CONFIG, jnp.tile(jnp.arange(6), (2, 1))), jnp.array([6, 6])
    out, cache = jax.eval_shape(partial(attend, 1), q, k, v, rope, empty(), counts=counts)
    assert out.dtype == jnp.bfloat16
    assert out.shape == q.shape
    assert jax.tree.structure(cache) == jax.tree.structure(empty())


def test_an_unknown_implementation_is_refused():
    rope = rope_tables(CONFIG, jnp.zeros((1, 1), jnp.int32))
    q, k, v = map(jnp.array, tokens(1, batch=1))
    with pytest.raises(Exception, match="implementation"):
        attend(
            0,
            q,
            k,
            v,
            rope,
            empty(1),
            counts=jnp.array([1]),
            implementation="magic",  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    ("count", "timed", "wanted"), [(1, True, "pallas"), (1, False, "xla"), (6, True, "xla")]
)
def test_the_kernel_is_taken_unasked_where_it_was_timed(monkeypatch, count, timed, wanted):
    """For one token: nothing says yet that it is faster for many."""
    taken = []
    note = lambda name: lambda q, *rest: (taken.append(name), q)[1]
    monkeypatch.setattr(api, "READERS", {name: note(name) for name in api.READERS})
    monkeypatch.setattr(
        api, "timed_here", lambda cache, heads: timed and heads == HEADS // KV_HEADS
    )
    rope = rope_tables(CONFIG, jnp.tile(jnp.arange(count), (2, 1)))
    q, k, v = map(jnp.array, tokens(count))
    run = lambda cache: attend(1, q, k, v, rope, cache, counts=jnp.array([count, count]))
    jax.eval_shape(run, empty())
    assert taken == [wanted]
