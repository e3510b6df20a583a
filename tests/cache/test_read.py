"""Reading what is stored, all of it and nothing else: there is no shadow copy."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention.tiled import attend_tiled
from deltakv_jax.cache import KVCache, Stack, make_cache, read, read_tile, slots
from deltakv_jax.codec import Format, Leaves, parse_spec
from tests.cache.material import random_bits

TEXTS = (
    *("f16/bf16", "q8_0/q4_0", "q4_0:rotate/f32", "delta:interval=4/delta:rotate:interval=3"),
    "layered:window=0:sinks=0/layered:bits=3:window=0:sinks=0",
    "layered:bits=2:window=0:sinks=0/f32",
)
SPECS = tuple(map(parse_spec, TEXTS))
HELD, HEAD_DIM = 7, 32  # inside a group of either delta


def _hadamard() -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < HEAD_DIM:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / math.sqrt(HEAD_DIM)


HADAMARD = _hadamard()


def cache_of_seven() -> KVCache:
    """One sequence and one kv head, with room for more than it holds."""
    cache = make_cache(SPECS, layers=len(SPECS), kv_heads=1, head_dim=HEAD_DIM, capacity=10)
    return dataclasses.replace(random_bits(cache), lengths=jnp.array([HELD]))


def decoded(side: Format, leaves: Leaves) -> np.ndarray:
    """The values [t, d] of leaves [rows, width], by hand in float64."""
    if "values" in leaves:
        return np.asarray(leaves["values"], np.float64)
    if "bits" in leaves:
        return (np.asarray(leaves["bits"], np.uint32) << 16).view(np.float32).astype(np.float64)
    codes = np.asarray(leaves["codes"])
    if side.name == "layered":
        return layered_by_hand(side, leaves) @ HADAMARD
    if codes.dtype == np.uint16:
        planes = codes.view(np.uint8).reshape(len(codes), -1, 16)
        codes = np.concatenate([planes & 15, planes >> 4], -1).reshape(len(codes), -1) - 8.0
    terms = codes * np.asarray(leaves["scales"], np.float64).repeat(32, -1)
    if "keyframes" in leaves:
        terms[:: side.interval] = leaves["keyframes"]
        terms = terms.reshape(-1, side.interval, HEAD_DIM).cumsum(1).reshape(terms.shape)
    return terms @ HADAMARD if side.rotate else terms


def layered_by_hand(side: Any, leaves: Leaves) -> np.ndarray:
    """The values [t, d] in the stored frame, value by value as the README has it."""
    codes, scales = np.asarray(leaves["codes"], int), np.asarray(leaves["scales"], int)
    parts = 8 if side.bits == 3 else 4
    low, shift = (2, 2) if side.bits == 3 else (side.bits, side.bits)
    made = [codes >> shift * part & 2**low - 1 for part in range(parts)]
    if side.bits == 3:
        high = np.asarray(leaves["high"], int)
        made = [low_bits | (high >> part & 1) << 2 for part, low_bits in enumerate(made)]
    n = 2 * np.concatenate(made, axis=-1) + 1 - 2**side.bits
    bend = {2: 0, 3: 31, 4: 7}[side.bits] / 4096
    scale = 2.0 ** (scales // 8 - 15) * (1 + scales % 8 / 8)
    return n * (1 + bend * n**2) * scale.repeat(HEAD_DIM // scale.shape[-1], -1)


def test_the_reconstruction_is_the_formats_equation():
    """On random bits: codes that no encoder would choose included."""
    cache = cache_of_seven()
    for layer, spec in enumerate(SPECS):
        stack = cache.stacks[layer]
        for got, side, leaves in zip(
            jax.jit(read)(cache, layer), (spec.k, spec.v), (stack.k, stack.v), strict=True
        ):
            want = decoded(side, jax.tree.map(lambda leaf: leaf[0, 0, 0], leaves))
            np.testing.assert_allclose(got[0, 0], want[: cache.capacity], atol=1e-5)


@pytest.mark.parametrize("kind", range(len(SPECS)))
def test_tiles_are_the_whole_in_pieces(kind):
    cache = cache_of_seven()
    period = math.lcm(SPECS[kind].k.interval, SPECS[kind].v.interval)
    starts = range(0, slots(cache, kind), period)
    tiles = [read_tile(cache, kind, jnp.int32(0), start, period) for start in starts]
    joined = jax.tree.map(lambda *rows: jnp.concatenate(rows, axis=-2)[None], *tiles)
    for got, want in zip(jax.tree.leaves(joined), jax.tree.leaves(cache.stacks[kind]), strict=True):
        np.testing.assert_array_equal(got, want)


def live_bits(side: Format, key: str, leaf: jax.Array) -> np.ndarray:
    """Bool [bits of the leaf]: those that a token that is held depends on."""
    tokens = side.interval if side.leaves(HEAD_DIM)[key].per == "group" else 1
    live = np.arange(leaf.shape[3]) * tokens < HELD
    return live.repeat(8 * leaf.nbytes // len(live))


def unused_bits(side: Format, key: str, leaf: jax.Array) -> np.ndarray:
    """Bool [bits of the leaf]: the slots of keyframes, which stay zero and mean nothing."""
    rows = np.arange(leaf.shape[3])
    unused = (rows % side.interval == 0) & (side.chained and key != "keyframes")
    return unused.repeat(8 * leaf.nbytes // len(rows))


def flipped(leaf: jax.Array, bit: jax.Array) -> jax.Array:
    """`leaf` with one bit flipped, or unchanged if it has no such bit."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    width = 8 * leaf.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(leaf, unsigned).reshape(-1)
    mask = (jnp.arange(bits.size) == bit // width) * (jnp.uint32(1) << bit % width)
    changed = (bits ^ mask.astype(unsigned)).reshape(leaf.shape)
    return jax.lax.bitcast_convert_type(changed, leaf.dtype)


@jax.jit
def with_and_without(cache: KVCache, layer: jax.Array, chosen: jax.Array, bits: jax.Array):
    """Whether flipping each bit [n] of leaf `chosen` changes what is read and attended to."""
    leaves, tree = jax.tree.flatten(cache.stacks)
    q = jnp.sin(jnp.arange(2.0 * HEAD_DIM)).reshape(1, 1, 2, HEAD_DIM)
    positions = jnp.full((1, 1), HELD - 1)

    def outcome(bit):
        flips = [flipped(x, jnp.where(chosen == i, bit, -1)) for i, x in enumerate(leaves)]
        one = dataclasses.replace(cache, stacks=jax.tree.unflatten(tree, flips))
        values = jnp.stack(read(one, layer))[:, :, :, :HELD]
        return values, attend_tiled(q, positions, one, layer)

    plain = outcome(jnp.int32(-1))
    differs = lambda bit: [jnp.any(a != b) for a, b in zip(outcome(bit), plain, strict=True)]
    return jax.lax.map(differs, bits)


def drawn_bits(leaf: jax.Array, live: np.ndarray, unused: np.ndarray) -> np.ndarray:
    """2048 bits of a leaf; of rows that hold no token, none that makes a value infinite."""
    bits, width = np.arange(live.size, dtype=np.int32), 8 * leaf.dtype.itemsize
    allowed = bits[(live | (bits % width != width - 2)) & ~unused]
    return np.resize(np.random.default_rng(0).permutation(allowed), 2048)


@pytest.mark.parametrize("layer", range(len(SPECS)), ids=TEXTS)
def test_any_stored_bit_counts_and_no_other(layer):
    """Flip it and what is read changes, and the attention; flip one behind the end: nothing."""
    cache, spec = cache_of_seven(), SPECS[layer]
    for index, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(cache.stacks)):
        kind, side, key = path[0].idx, path[1].name, path[2].key
        if kind != layer:
            continue
        live = live_bits(getattr(spec, side), key, leaf)
        bits = drawn_bits(leaf, live, unused_bits(getattr(spec, side), key, leaf))
        read_differs, out_differs = with_and_without(
            cache, jnp.int32(layer), jnp.int32(index), jnp.array(bits)
        )
        np.testing.assert_array_equal(read_differs, live[bits], err_msg=f"{side} {key}")
        # The last bits of a float32 may be lost in the rounding of a sum.
        sure = (bits % 32 >= 16) | (leaf.dtype != jnp.float32)
        np.testing.assert_array_equal(out_differs[sure], live[bits][sure], err_msg=f"{side} {key}")


def test_a_stack_holds_nothing_but_its_leaves():
    cache = cache_of_seven()
    assert [field.name for field in dataclasses.fields(Stack)] == ["k", "v", "near", "centre"]
    for spec, stack in zip(SPECS, cache.stacks, strict=True):
        assert set(stack.k) == set(spec.k.leaves(HEAD_DIM))
        assert set(stack.v) == set(spec.v.leaves(HEAD_DIM))
