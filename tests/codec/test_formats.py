"""What each format stores, and the chain of `delta`: closed loop, any split, bit for bit."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from deltakv_jax.codec import Format, Leaves, hadamard, parse_spec

EXAMPLES = settings(max_examples=20, deadline=None, derandomize=True)
RNG = np.random.default_rng(0)
rotate = jax.jit(hadamard.rotate)


def fmt(text: str) -> Format:
    return parse_spec(text).k


def empty(side: Format, tokens: int, head_dim: int, *lead: int) -> Leaves:
    """The leaves of `tokens` tokens before any is written."""
    rows = {"token": tokens, "group": tokens // side.interval}
    leaves = side.leaves(head_dim).items()
    return {key: jnp.zeros((*lead, rows[leaf.per], leaf.width), leaf.dtype) for key, leaf in leaves}


@partial(jax.jit, static_argnums=0)
def encode(side: Format, x: jax.Array) -> Leaves:
    """All of x [*lead, t, d] at once."""
    old = empty(side, x.shape[-2], x.shape[-1], *x.shape[:-2])
    return side.encode(x=x, new=jnp.ones(x.shape[:-1], bool), old=old)


@partial(jax.jit, static_argnums=0)
def decode(side: Format, leaves: Leaves) -> jax.Array:
    return side.decode(leaves)


def assert_same_bits(got: Mapping[str, ArrayLike], want: Mapping[str, ArrayLike]) -> None:
    for key, leaf in want.items():
        got_bits, want_bits = (np.asarray(a).view(np.uint8) for a in (got[key], leaf))
        np.testing.assert_array_equal(got_bits, want_bits, err_msg=key)


@pytest.mark.parametrize("name", ["f32", "bf16", "f16"])
def test_dense_formats_store_the_nearest_value(name):
    dtype = np.dtype({"f32": np.float32, "bf16": jnp.bfloat16, "f16": np.float16}[name])
    x = RNG.standard_normal((4, 6)).astype(np.float32)
    x[0] = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 2**-24, 65504]  # ties to even
    leaves = encode(fmt(name), jnp.array(x))
    (stored,) = leaves.values()
    np.testing.assert_array_equal(np.asarray(stored).view(dtype), x.astype(dtype))
    np.testing.assert_array_equal(decode(fmt(name), leaves), x.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "delta"])
def test_rotation_happens_before_quantisation_and_is_undone_after(name):
    plain, rotated = fmt(name), fmt(f"{name}:rotate")
    x = RNG.standard_normal((32, 32)).astype(np.float32)
    leaves = encode(rotated, x)
    assert_same_bits(leaves, encode(plain, rotate(x)))
    np.testing.assert_allclose(decode(rotated, leaves), rotate(decode(plain, leaves)), atol=1e-6)


def test_delta_golden_bytes():
    """A group of 3 by hand; the stored form is a promise to every cache ever written."""
    i = np.arange(32)
    x_0 = i / 4 - 2  # exact in float16
    e_1 = np.where(i == 0, -8, i % 8)  # scale 1, codes exact
    e_2 = np.where(i == 31, 4.0, -0.5)  # scale -1/2, largest last
    x = np.stack([x_0, x_0 + e_1 + 0.25 * (i > 0), x_0 + e_1 + e_2])  # a quarter is lost at 1 …
    leaves = encode(fmt("delta:interval=3"), jnp.array(x, jnp.float32))
    pack = lambda codes: (codes[:16] | codes[16:] << 4).astype(np.uint8).view(np.uint16)
    np.testing.assert_array_equal(leaves["keyframes"], x_0.astype(np.float16)[None])
    np.testing.assert_array_equal(leaves["scales"][:, 0], np.array([0, 1, -0.5], np.float16))
    np.testing.assert_array_equal(leaves["codes"][0], 0)  # the keyframe's own slot stays zero
    np.testing.assert_array_equal(leaves["codes"][1], pack(e_1 + 8))
    # … and the difference at 2 is from the reconstruction, so it does not come back.
    np.testing.assert_array_equal(leaves["codes"][2], pack(np.where(i == 31, 0, 9)))
    np.testing.assert_array_equal(
        decode(fmt("delta:interval=3"), leaves), np.stack([x_0, x_0 + e_1, x_0 + e_1 + e_2])
    )


def test_terms_sum_to_the_values_from_the_base_of_their_group():
    side = fmt("delta:interval=4")
    x = RNG.standard_normal((3, 8, 32)).astype(np.float32)
    leaves = encode(side, x)
    parts = jax.jit(lambda leaves: (side.join(side.terms(leaves)), side.base(leaves)))(leaves)
    (terms, base), values = map(np.asarray, parts), np.asarray(decode(side, leaves))
    for group in (0, 1):
        tokens = slice(4 * group, 4 * group + 4)
        sums = base[:, group, None] + terms[:, tokens].cumsum(axis=1)
        np.testing.assert_allclose(values[:, tokens], sums, atol=1e-6)
    np.testing.assert_array_equal(values[:, ::4], x[:, ::4].astype(np.float16))


INTERVAL, GROUPS, HEAD_DIM = 32, 2, 64


@jax.jit
def _delta_of(x):
    side = fmt("delta")
    leaves = encode(side, x)
    return leaves["scales"], side.decode(leaves)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.3, 3.0]))
@EXAMPLES
def test_closed_loop(seed, drift):
    """At every position the error is bounded by the step of that position alone."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((INTERVAL * GROUPS, HEAD_DIM)) * drift
    x = (rng.standard_normal(HEAD_DIM) + steps.cumsum(axis=0)).astype(np.float32)
    scales, values = map(np.asarray, _delta_of(x))
    step = abs(scales.astype(np.float32)).repeat(32, -1)
    difference = x[1:] - values[:-1]
    later = np.arange(1, len(x)) % INTERVAL != 0
    error = abs(values - x)[1:][later]
    # Half a step, or one where the difference would need the code 16; the rounding of a scale that
    # float16 hardly holds, at most 8 codes from 0; and that of the sums.
    step, difference = step[1:][later], abs(difference)[later]
    bound = np.where(difference > 7.4 * step, 1.04, 0.5) * step + 8 * 2**-22 + 1e-6 * abs(x).max()
    assert (error <= bound).all()
    keyframes = x[::INTERVAL]
    np.testing.assert_array_equal(values[::INTERVAL], keyframes.astype(np.float16))


def test_the_error_does_not_grow_along_a_group():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, INTERVAL * GROUPS, HEAD_DIM)).cumsum(axis=1).astype(np.float32)
    _, values = jax.vmap(_delta_of)(x)
    error = np.sqrt(np.mean((np.asarray(values) - x) ** 2, axis=(0, 2))).reshape(GROUPS, INTERVAL)
    assert error[:, 1:].max() < 1.2 * error[:, 1:4].mean()


def rows_of(leaves: Leaves, held: int) -> dict[str, np.ndarray]:
    """What the tokens that are held have to themselves, without the keyframes of groups."""
    tokens = {key: leaf for key, leaf in leaves.items() if key != "keyframes"}
    return {key: np.asarray(leaf)[:, :held] for key, leaf in tokens.items()}


SPLIT = ["f16", "q4_0:rotate", "delta:interval=6", "delta:rotate:interval=9"]


@pytest.mark.parametrize("name", SPLIT)
def test_stored_rows_keep_their_bits_and_any_split_gives_the_same(name):
    side = fmt(name)
    n = max(side.interval, 6)
    at = jnp.arange(n)

    @jax.jit
    def both(x, held):
        new = lambda mask: jnp.broadcast_to(mask, x.shape[:-1])
        blank = empty(side, n, 32, 5)
        stored, whole = at[:, None] < held, new(True)
        first = side.encode(x=jnp.where(stored, x, jnp.nan), new=new(at < held), old=blank)
        rest = jnp.where(stored, jnp.nan, x)  # what is stored is not read again
        second = side.encode(x=rest, new=new(at >= held), old=first)
        return side.encode(x=x, new=whole, old=blank), second, first

    x = RNG.standard_normal((5, n, 32)).cumsum(axis=1).astype(np.float32)
    for held in range(n + 1):
        whole, split, first = both(x, held)
        assert_same_bits(split, whole)
        assert_same_bits(rows_of(first, held), rows_of(split, held))


def drifting(sequences: int, tokens: int) -> jax.Array:
    """Steps of all sizes, down to differences in which the last bit of a value shows."""
    steps = RNG.standard_normal((sequences, tokens, 32)) * 10 ** RNG.uniform(
        -7, 0, (sequences, 1, 1)
    )
    return jnp.array(RNG.standard_normal((sequences, 1, 32)) + steps.cumsum(axis=1), jnp.float32)


@pytest.mark.parametrize("name", SPLIT)
def test_append_gives_the_bits_of_encode(name):
    side = fmt(name)
    n = side.interval

    @jax.jit
    def one_by_one(x):
        def step(leaves, at):
            token = jax.lax.dynamic_slice_in_dim(x, at, 1, axis=1)
            rows = side.append(x=token, old=leaves, n=jnp.full(len(x), at))
            put = lambda leaf, row: jax.lax.dynamic_update_slice_in_dim(leaf, row, at, axis=1)
            return jax.tree.map(put, leaves, rows), None  # a keyframe's row is clipped to 0

        return jax.lax.scan(step, empty(side, n, 32, len(x)), jnp.arange(n))[0]

    x = drifting(400, n)
    assert_same_bits(one_by_one(x), encode(side, x))


def test_eager_and_compiled_give_the_same_bits():
    side = fmt("delta:rotate:interval=6")
    x = drifting(300, 6)
    eager = side.encode(x=x, new=jnp.ones(x.shape[:-1], bool), old=empty(side, 6, 32, 300))
    assert_same_bits(eager, encode(side, x))


@pytest.mark.parametrize(
    ("name", "bits"),
    [("f32", 32), ("bf16", 16), ("f16", 16), ("q8_0", 8.5), ("q4_0", 4.5), ("delta", 5.0)],
)
def test_stored_bits(name, bits):
    """Per value of a whole group; rotation costs nothing."""
    for text in (name, f"{name}:rotate") if "_" in name else (name,):
        leaves = jax.eval_shape(partial(empty, fmt(text), 32, 96)).values()
        stored = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        assert 8 * stored / (32 * 96) == bits


@pytest.mark.parametrize("name", ["f16", "q8_0", "q4_0", "delta"])
def test_planes_are_the_head_in_another_order(name):
    """Split like the terms, a query's products with them add up to its product with the whole."""
    side = fmt(name)
    x = np.arange(2 * 96, dtype=np.float32).reshape(2, 96)
    planes, joined = jax.jit(lambda x: (side.split(x), side.join(side.split(x))))(x)
    np.testing.assert_array_equal(joined, x)
    terms = jax.eval_shape(lambda x: side.terms(encode(side, x)), np.ones((32, 96), np.float32))
    assert [p.shape[-1] for p in planes] == [p.shape[-1] for p in terms]
