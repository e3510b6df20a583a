"""Figures of neighbouring tokens: known sequences, and plain loops over the same arrays."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.cache import advance, make_cache, read, write
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import coherence
from deltakv_jax.evaluation.coherence import Row

TOKENS, INTERVAL = 256, 8
SHAPE = 4, TOKENS, 32  # of nearly all arrays: one program


def rows_of(*chunks: np.ndarray) -> tuple[Row, ...]:
    """The rows of chunks [l a k t d]."""
    return coherence.rows([np.asarray(chunk, np.float32) for chunk in chunks], INTERVAL)


def row_of(*sequences: np.ndarray) -> Row:
    """The row of one array [k t d] in one layer, each sequence a chunk."""
    chunks = [np.broadcast_to(x, (1, 3, *x.shape)) for x in sequences]
    return rows_of(*chunks)[0]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def autoregressive(r: float) -> np.ndarray:
    """x_t = r x_{t-1} + noise of variance 1 - r², so of variance 1: [k t d]."""
    x = noise(*SHAPE)
    for t in range(1, TOKENS):
        x[:, t] = r * x[:, t - 1] + math.sqrt(1 - r * r) * x[:, t]
    return x


def test_white_noise_has_nothing_in_common():
    row = row_of(noise(*SHAPE))
    assert row.relative_delta == pytest.approx(math.sqrt(2), rel=0.01)
    assert row.correlation == pytest.approx(0, abs=0.02)
    assert row.mean_energy == pytest.approx(0, abs=0.01)
    assert row.range_ratio == pytest.approx(math.sqrt(2), rel=0.05)
    assert row.delta_by_q4_0 == pytest.approx(2 * (1 - 1 / INTERVAL), rel=0.05)
    assert row.centred_by_q4_0 == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("r", [0.5, 0.9])
def test_an_autoregressive_sequence_has_its_own_correlation(r):
    row = row_of(autoregressive(r))
    assert row.correlation == pytest.approx(r, abs=0.03)
    assert row.relative_delta == pytest.approx(math.sqrt(2 * (1 - r)), rel=0.03)


def test_a_constant_per_channel_is_a_share_of_the_energy_and_no_correlation():
    offset = 2 * np.sign(noise(4, 1, 32, seed=1))
    row = row_of(noise(*SHAPE) + offset)
    assert row.mean_energy == pytest.approx(4 / 5, abs=0.01)
    assert row.correlation == pytest.approx(0, abs=0.02)
    assert row.relative_delta == pytest.approx(math.sqrt(2 / 5), rel=0.02)
    assert row.centred_by_q4_0 is not None
    assert row.centred_by_q4_0 < 0.6


def test_differences_win_on_a_random_walk():
    walk = np.cumsum(0.01 * noise(*SHAPE), axis=1) + noise(4, 1, 32, seed=1)
    row = row_of(walk)
    assert row.delta_by_q4_0 is not None
    assert row.delta_by_q4_0 < 1e-3
    assert row.range_ratio is not None
    assert row.range_ratio < 0.02


def test_no_difference_crosses_the_start_of_a_chunk():
    row = row_of(np.full(SHAPE, 1.0), np.full(SHAPE, 3.0))
    assert row.relative_delta == 0
    assert row.correlation == pytest.approx(1)  # every token and its neighbour lie on one side
    assert row.mean_energy == pytest.approx(4 / 5)
    assert row.range_ratio is None  # no block has a range


def q4_0(x: np.ndarray) -> np.ndarray:
    """What is left of one block in `q4_0`."""
    scale = np.float32(x[np.argmax(np.abs(x))] / -8)
    codes = np.minimum(15, np.trunc(x / scale + 8.5))
    return (codes - 8) * np.float32(np.float16(scale))


def short_q4_0(x: np.ndarray) -> np.ndarray:
    """The same with a scale of 8 significant bits."""
    mantissa, exponent = np.frexp(np.float16(x[np.argmax(np.abs(x))] / -8))
    away = np.trunc(np.float32(mantissa) * 256 + np.copysign(0.5, mantissa))
    scale = np.float32(np.ldexp(away / 256, exponent))
    codes = np.clip(np.trunc(x / scale + 8.5), 0, 15)
    return (codes - 8) * scale


def delta(x: np.ndarray) -> np.ndarray:
    """What is left of the tokens [t 32] of one block in `delta`."""
    stored = []
    for t, token in enumerate(x):
        keyframe = np.float32(np.float16(token))
        stored.append(stored[-1] + short_q4_0(token - stored[-1]) if t % INTERVAL else keyframe)
    return np.array(stored)


def by_loops(chunks: np.ndarray) -> dict[str, float]:
    """The figures of one array in one layer, of chunks [c k t 32]: one block a head."""
    sequences = [x for chunk in chunks for x in chunk]
    mean = np.float64(chunks).mean(axis=(0, 2))  # [k 32]
    pairs = [(a, b) for x in sequences for a, b in itertools.pairwise(x)]
    about = lambda chunk: np.float64(chunk) - mean[:, None]
    products = [about(chunk)[:, :-1] * about(chunk)[:, 1:] for chunk in chunks]
    energy = sum(np.sum(np.float64(x) ** 2) for x in sequences)
    errors = lambda store: sum(np.sum((store(x) - np.float64(x)) ** 2) for x in sequences)
    tokens = lambda x: np.array([q4_0(token) for token in x])
    centred = sum(
        np.sum((tokens(x - m.astype(np.float32)) + m - np.float64(x)) ** 2)
        for chunk in chunks
        for x, m in zip(chunk, mean, strict=True)
    )
    return {
        "relative_delta": math.sqrt(
            sum(np.sum((b - a) ** 2) for a, b in pairs) / sum(np.sum(b**2) for _, b in pairs)
        ),
        "correlation": float(np.mean(products) / np.mean([about(chunk) ** 2 for chunk in chunks])),
        "mean_energy": float(np.mean(mean**2) / np.mean(np.float64(chunks) ** 2)),
        "range_ratio": float(np.mean([np.ptp(b - a) / np.ptp(b) for a, b in pairs])),
        "q4_0_mse": errors(tokens) / energy,
        "delta_mse": errors(delta) / energy,
        "centred_q4_0_mse": centred / energy,
    }


@pytest.fixture
def material() -> np.ndarray:
    """Chunks [c l a k t d] of no whole number of groups; layers and arrays of their own size."""
    size = 2.0 ** np.arange(6).reshape(2, 3, 1, 1, 1)
    offset = noise(2, 3, 2, 1, 32, seed=1)
    return np.asarray(size * (noise(3, 2, 3, 2, 11, 32) + offset), np.float32)


def test_every_figure_is_that_of_plain_loops(material):
    rows = rows_of(*material)
    assert [(row.layer, row.array) for row in rows] == [
        (layer, array) for layer in (0, 1, None) for array in ("k_before_rope", "k_after_rope", "v")
    ]
    for row, index in zip(rows[:6], np.ndindex(2, 3), strict=True):
        want = by_loops(material[:, *index])
        got = dataclasses.asdict(row)
        assert {key: got[key] for key in want} == pytest.approx(want, rel=2e-4)


def test_all_layers_together_are_one_layer_with_their_heads(material):
    merged = np.moveaxis(material, 1, 2).reshape(3, 1, 3, 4, 11, 32)
    for of_all, of_one in zip(rows_of(*material)[6:], rows_of(*merged)[:3], strict=True):
        got, want = dataclasses.asdict(of_all), dataclasses.asdict(of_one)
        assert got.pop("layer") is None
        assert got.pop("array") == want.pop("array")
        assert got == pytest.approx({key: want[key] for key in got}, rel=1e-6)


def test_sums_are_float64(material):
    x = material[0, 0]
    sums = coherence.layer_sums(x, x.mean(axis=2, dtype=np.float64), INTERVAL)
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {np.dtype(np.float64)}


def test_without_blocks_the_other_figures_remain(material):
    row, whole = (rows_of(*chunks)[0] for chunks in (material[..., :8], material))
    assert row.range_ratio is row.q4_0_mse is row.delta_mse is row.centred_q4_0_mse is None
    assert row.delta_by_q4_0 is row.centred_by_q4_0 is None
    assert row.relative_delta == pytest.approx(whole.relative_delta, rel=0.3)


def test_where_all_is_zero_no_ratio_is_made_up():
    figures = dataclasses.asdict(row_of(np.zeros(SHAPE)))
    assert {figures.pop("layer"), figures.pop("array")} == {0, "k_before_rope"}
    assert set(figures.values()) == {None}


def test_what_is_not_finite_is_refused_by_its_chunk():
    good, bad = np.ones(SHAPE), np.ones(SHAPE)
    bad[0, 3, 5] = np.nan
    with pytest.raises(UserError, match="not finite in chunk 2"):
        row_of(good, bad)
    with pytest.raises(UserError, match="too large in chunk 3 for the float16"):
        row_of(good, good, 1e6 * good)


def test_a_reconstruction_is_what_a_cache_holds():
    spec, count = parse_spec("delta:interval=8/q4_0"), jnp.array([21], jnp.int32)
    cache = make_cache(spec, layers=1, kv_heads=2, head_dim=32, capacity=21)

    @jax.jit
    def both(x):
        tokens = jnp.swapaxes(x, 0, 1)[None]
        held = read(advance(write(cache, 0, tokens, tokens, count), count), 0)
        made = [coherence.reconstruction(side, x) for side in (spec.k, spec.v)]
        return made, [side[0] for side in held]

    for made, held in zip(*both(noise(2, 21, 32).astype(np.float32)), strict=True):
        np.testing.assert_array_equal(made, held)
