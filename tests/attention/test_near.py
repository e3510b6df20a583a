"""What each query reads refined, what centred, against a loop over pairs of tokens in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention import apply_rope, attend, rope_tables
from deltakv_jax.cache import KVCache, Sides, advance, make_cache
from deltakv_jax.codec import Format, KVSpec, parse_spec
from deltakv_jax.codec.hadamard import rotate
from deltakv_jax.config import LlamaConfig

BATCH, HEADS, KV_HEADS, HEAD_DIM, LENGTH = 2, 4, 2, 32, 40
CONFIG = LlamaConfig(
    vocab_size=8,
    width=HEADS * HEAD_DIM,
    layers=1,
    heads=HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    ffn=8,
    context=LENGTH,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    tied=True,
)
PLAIN = (
    "layered:window=16:sinks=3",
    "layered:bits=3:window=0:sinks=4",
    "layered:bits=2:window=9:sinks=0/q4_0:rotate",
    "f16/layered:window=5:sinks=1",
)
CENTRED = ("layered:window=16:sinks=3:centre", "q4_0/layered:bits=2:window=0:sinks=0:centre")
AT_ONCE, PIECES = (LENGTH,), (LENGTH // 2 - 1, 1, 1, LENGTH // 2 - 1)
RNG = np.random.default_rng(0)
Q, K, V = (
    RNG.standard_normal((BATCH, LENGTH, heads, HEAD_DIM)).astype(np.float32)
    for heads in (HEADS, KV_HEADS, KV_HEADS)
)
MEANS = jnp.array(RNG.standard_normal((2, 1, KV_HEADS, HEAD_DIM)), jnp.float16)
ROPE = rope_tables(CONFIG, jnp.tile(jnp.arange(LENGTH), (BATCH, 1)))


def make(spec: KVSpec) -> KVCache:
    return make_cache(
        spec,
        layers=1,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=LENGTH,
        batch=BATCH,
        centre=Sides(k={"mean": MEANS[0]}, v={"mean": MEANS[1]}),
    )


step = jax.jit(attend, static_argnames="implementation")


def attended(spec: KVSpec, pieces: tuple[int, ...], implementation: str) -> np.ndarray:
    """All queries, fed in pieces."""
    cache, outputs, first = make(spec), [], 0
    for count in pieces:
        tokens, rope = _piece(slice(first, first + count))
        counts = jnp.full(BATCH, count)
        out, cache = step(0, *tokens, rope, cache, counts=counts, implementation=implementation)
        cache = advance(cache, counts)
        outputs.append(out)
        first += count
    return np.concatenate(outputs, axis=1)


def _piece(part: slice):
    """q, k and v of some tokens, and their tables."""
    positions = jnp.tile(jnp.arange(LENGTH)[part], (BATCH, 1))
    return [x[:, part] for x in (Q, K, V)], rope_tables(CONFIG, positions)


@jax.jit
def turned(x):
    return apply_rope(x, ROPE)


@functools.partial(jax.jit, static_argnums=(0, 3))
def packed_and_refined(side: Format, x: jax.Array, mean: jax.Array, turn) -> list[jax.Array]:
    """x [b t k d] as it is read far and near, the mean added to both."""
    mean = jnp.broadcast_to(mean.astype(jnp.float32)[:, None] if side.centre else 0.0, x.shape)
    values = jnp.swapaxes(turn(x - mean), 1, 2)
    old = {
        key: jnp.zeros((*values.shape[:3], leaf.width), leaf.dtype)
        for key, leaf in side.leaves(HEAD_DIM).items()
    }
    rows = side.encode(values, jnp.ones(values.shape[:3], bool), old)
    packed = side.decode(rows)
    near = packed
    if side.near_leaves(HEAD_DIM):
        planes = side.refinement(side.refine(values, rows))
        near = packed + rotate(side.join(planes))
    add = lambda part: jnp.swapaxes(part, 1, 2) + turn(mean)
    return [add(packed), add(near)]


def by_hand(spec: KVSpec) -> np.ndarray:
    """Each query over the tokens up to its own, each as the window and the sinks say."""
    sides = (spec.k, K, MEANS[0], turned), (spec.v, V, MEANS[1], jnp.asarray)
    keys, values = (np.asarray(packed_and_refined(*side), np.float64) for side in sides)
    q = np.asarray(turned(Q), np.float64)
    out = np.zeros(Q.shape)
    for b, t, h in np.ndindex(BATCH, LENGTH, HEADS):
        near = _is_near(spec, t)[:, None]
        k, v = (
            np.where(near, refined[b, : t + 1, h // 2], packed[b, : t + 1, h // 2])
            for packed, refined in (keys, values)
        )
        scores = k @ q[b, t, h] / np.sqrt(HEAD_DIM)
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ v / weights.sum()
    return out


def _is_near(spec: KVSpec, t: int) -> np.ndarray:
    """Bool [t + 1]: the tokens that token t reads refined."""
    s = np.arange(t + 1)
    side = max(spec.k, spec.v, key=lambda side: side.window + side.sinks)
    return (s > t - side.window) | (s < side.sinks)


def largest_error(got: np.ndarray, want: np.ndarray) -> float:
    return (np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)).max()


@pytest.mark.parametrize(
    "text",
    [
        CENTRED[0],
        *(pytest.param(text, marks=pytest.mark.slow) for text in (*PLAIN, *CENTRED[1:])),
    ],
)
def test_each_query_reads_its_own_window(text):
    """However the tokens come, and by every reader."""
    spec = parse_spec(text)
    want = by_hand(spec)
    for pieces, implementation in ((AT_ONCE, "reference"), (PIECES, "xla")):
        got = attended(spec, pieces, implementation)
        assert largest_error(got, want) < 1e-5, implementation


@pytest.mark.slow
@pytest.mark.parametrize("text", PLAIN[:1])
def test_the_kernel_reads_the_same(text):
    """Within what float16 products lose, which is less than one token too many would change."""
    spec = parse_spec(text)
    got = attended(spec, PIECES, "pallas-interpret")
    assert largest_error(got, by_hand(spec)) < 4e-3
