"""The decode kernel in interpret mode against the float32 reference, row by row, on the same codes.

A cache has a layer for every format, so that one program serves many; lengths are ragged, about the
ends of groups and of tiles.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention.reference import attend_reference
from deltakv_jax.cache import KVCache, make_cache, write
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from deltakv_pallas.cases import decode_case
from deltakv_pallas.decode import attend_pallas
from deltakv_pallas.lowering import TARGETS
from deltakv_pallas.tuning import Tuning, decode_tuning

KINDS = (
    "f32/bf16",
    "f16/q8_0",
    "q4_0:rotate/q4_0",
    "delta",
    "delta:interval=128/delta:rotate:interval=4",
    "layered:bits=3/layered:bits=2:block=32",
)
DELTA = KINDS.index("delta")
LENGTHS = (1, 31, 32, 33, 101, 2048)
EXACT_ERROR, HALF_ERROR = 1e-5, 2e-3
VECTOR = Tuning(matrix_units=False, rows=1, programs=64)
"""Of a device without matrix units."""
MATRIX = Tuning(rows=8, programs=64)

reference = jax.jit(attend_reference)


def filled(kinds, heads: int, head_dim: int, lengths=LENGTHS) -> KVCache:
    """A cache with a layer per kind, all with the same K and V."""
    sizes: dict[str, Any] = {"layers": len(kinds), "kv_heads": heads, "head_dim": head_dim}
    specs = tuple(map(parse_spec, kinds))
    cache = make_cache(specs, **sizes, capacity=max(lengths), batch=len(lengths))
    shape = (2, len(lengths), max(lengths), heads, head_dim)
    k, v = np.random.default_rng(0).standard_normal(shape, np.float32)
    for layer in range(len(kinds)):
        cache = fill(cache, layer, k, v, jnp.array(lengths, jnp.int32))
    return cache


fill = jax.jit(write, donate_argnums=0)


def queries(cache: KVCache, heads: int, tokens: int = 1, lengths=LENGTHS):
    """Queries [b, t, h, d] of the last tokens of each sequence, and their positions."""
    shape = (len(lengths), tokens, heads, cache.head_dim)
    q = jnp.array(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    first = np.maximum(np.array(lengths)[:, None] - tokens, 0)
    return q, jnp.array(first + np.arange(tokens), jnp.int32)


def largest_error(cache: KVCache, kernel, layer: int, q, positions) -> float:
    """Of any row, relative."""
    got, want = (f(q, positions, cache, jnp.int32(layer)) for f in (kernel, reference))
    error = np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)
    return float(np.max(error))


def interpreted(tuning: Tuning | None = None):
    return jax.jit(functools.partial(attend_pallas, interpret=True, tuning=tuning))


@pytest.fixture(scope="module")
def cache() -> KVCache:
    return filled(KINDS, 2, 64)


KERNELS = {"vector": interpreted(VECTOR), "matrix": interpreted(MATRIX)}


@pytest.mark.parametrize("device", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_at_every_length(cache, kind, device):
    q, positions = queries(cache, 8)
    error = largest_error(cache, KERNELS[device], KINDS.index(kind), q, positions)
    assert error < (EXACT_ERROR if kind == "f32/bf16" else HALF_ERROR)


SHORT = (1, 70, 67)


@pytest.fixture(scope="module")
def short() -> KVCache:
    return filled(("delta",), 2, 96, SHORT)


def test_sizes_that_are_no_powers_of_two(short):
    q, positions = queries(short, 6, lengths=SHORT)
    assert largest_error(short, KERNELS["vector"], 0, q, positions) < HALF_ERROR


def test_several_query_tokens_see_what_each_may_see_with_matrix_units(short):
    q, positions = queries(short, 6, tokens=9, lengths=SHORT)
    assert largest_error(short, interpreted(), 0, q, positions) < HALF_ERROR


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "bf16/f32", "q4_0/delta:interval=2", "q8_0/f16"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(3, 3, 128), (8, 1, 64), (5, 1, 96)])
@pytest.mark.parametrize("tuning", [Tuning(tile=64), VECTOR], ids=["matrix", "vector"])
def test_every_format_in_every_shape(kind, heads, kv_heads, head_dim, tuning):
    cache = filled((kind,), kv_heads, head_dim)
    q, positions = queries(cache, heads)
    error = largest_error(cache, interpreted(tuning), 0, q, positions)
    assert error < (EXACT_ERROR if kind in ("f32/bf16", "bf16/f32") else HALF_ERROR)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [1, 4, 8])
def test_on_a_gpu(cache, kind, heads):
    """The same cases, compiled for the GPU that is here, as its row of the table says."""
    q, positions = queries(cache, 2 * heads)
    error = largest_error(cache, jax.jit(attend_pallas), KINDS.index(kind), q, positions)
    assert error < (EXACT_ERROR if kind == "f32/bf16" else HALF_ERROR)


def test_two_runs_give_equal_bits(cache):
    q, positions = queries(cache, 8)
    first, second = (KERNELS["matrix"](q, positions, cache, jnp.int32(DELTA)) for _ in "ab")
    np.testing.assert_array_equal(first, second)


def test_an_interval_that_does_not_halve_is_refused():
    cache = filled(("delta:interval=6",), 1, 32, (3,))
    with pytest.raises(UserError, match="powers of two, delta:interval=6"):
        attend_pallas(*queries(cache, 1, lengths=(3,)), cache, 0, interpret=True)


@pytest.mark.parametrize(
    ("spec", "capacity", "fits"),
    [
        ("q8_0", 2**20, True),
        ("q8_0", 2**24, False),
        ("q8_0", 2**25, True),
        ("q4_0", 2**25, True),
    ],
)
def test_a_cache_whose_offsets_overflow_is_refused(spec, capacity, fits):
    """Codes of 128 bytes a token: 2^31 + 128 …; beyond 2^32 offsets have 64 bits.

    Words of 16 bits are never too many for 32 bits, and yet less than 2^32 bytes.
    """
    sizes = {"layers": 1, "kv_heads": 1, "head_dim": 128, "capacity": capacity + 1}
    cache = jax.eval_shape(functools.partial(make_cache, parse_spec(spec), **sizes))
    shape = jax.ShapeDtypeStruct
    arguments = (shape((1, 1, 1, 128), jnp.float32), shape((1, 1), jnp.int32), cache)
    attend = functools.partial(attend_pallas, layer=0)
    trace = lambda: jax.eval_shape(attend, *arguments)
    if fits:
        trace()
    else:
        with pytest.raises(UserError, match="at most 2147483648 numbers"):
            trace()


@pytest.mark.parametrize("target", TARGETS)
def test_it_lowers_for_a_gpu_that_is_not_at_hand(target):
    kernel = decode_case("delta", 128, 8).lower(TARGETS[target])
    tuning = decode_tuning(TARGETS[target].device_kind, "delta", 128, 8)
    assert kernel.warps == tuning.warps
    assert kernel.grid == (1, 8, tuning.programs // 8)


def test_the_most_special_row_is_taken():
    assert decode_tuning("gfx906", "delta:interval=128", 128, 8).heads == 8
    assert decode_tuning("gfx906", "no such format", 1, 1) == decode_tuning("gfx906", "", 0, 0)
    assert decode_tuning("a new GPU", "delta", 128, 8).device == ""
