"""Runs of several formats: what they share, what they may not depend on, what stops them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import results, runner, texts
from deltakv_jax.evaluation.store import Store
from deltakv_jax.weights import LoadedModel, Tokenizer, demo_folder
from tests.evaluation.conftest import CTX, PACKED

SPECS = tuple(map(parse_spec, ("f32", PACKED)))
SETTINGS = runner.Settings(specs=SPECS, ctx=CTX)


def measure(model, chunks, settings=SETTINGS, progress=lambda done: None):
    return results.join([batch for _, batch in runner.measure(model, chunks, settings, progress)])


@pytest.mark.parametrize("batch", [2, 8])  # with a rest, and all at once
def test_results_do_not_depend_on_the_batch(random_llama, random_chunks, batch):
    chunks = random_chunks(5, CTX)
    one = measure(random_llama, chunks, dataclasses.replace(SETTINGS, batch=1))
    many = measure(random_llama, chunks, dataclasses.replace(SETTINGS, batch=batch))
    jax.tree.map(np.testing.assert_array_equal, one[:3], many[:3])


def test_a_chunk_does_not_depend_on_the_others(random_llama, random_chunks):
    all_of_them = measure(random_llama, random_chunks(5, CTX))
    first = measure(random_llama, random_chunks(1, CTX))
    np.testing.assert_array_equal(first.nll[:, 0], all_of_them.nll[:, 0])


def test_scores_stay_float64_on_the_host(random_llama, random_chunks):
    got = measure(random_llama, random_chunks(3, CTX))
    assert got.nll.shape == got.kld.shape == got.same_top.shape == (2, 3, CTX // 2 - 1)
    assert got.nll.dtype == got.kld.dtype == np.float64
    assert np.all(got.seconds > 0)


def test_progress_counts_chunks_times_formats(random_llama, random_chunks):
    told = []
    measure(
        random_llama, random_chunks(5, CTX), dataclasses.replace(SETTINGS, batch=2), told.append
    )
    assert told == [2, 2, 2, 2, 1, 1]


def test_both_routes_agree(random_llama, random_chunks):
    chunks = random_chunks(3, CTX)
    parallel = measure(random_llama, chunks)
    sequential = measure(random_llama, chunks, dataclasses.replace(SETTINGS, sequential=True))
    np.testing.assert_allclose(sequential.nll[0], parallel.nll[0], atol=2e-5)
    np.testing.assert_allclose(sequential.nll.mean((1, 2)), parallel.nll.mean((1, 2)), atol=2e-3)


def test_a_chunk_whose_logits_are_not_finite_is_named(random_llama, random_chunks):
    broken, chunks = jax.tree.map(jnp.array, random_llama), random_chunks(4, CTX)
    chunks.tokens[chunks.tokens == 95] = 0
    chunks.tokens[2, 5] = 95
    broken.embedding.kind[...] = broken.embedding.kind[...].at[95].set(jnp.nan)
    with pytest.raises(UserError, match=r"not finite in chunk 3 with KV f32"):
        measure(broken, chunks, dataclasses.replace(SETTINGS, batch=2))


def test_a_format_whose_logits_are_not_finite_is_named(random_llama, random_chunks):
    """f32 holds a value of a million, a keyframe of f16 does not."""
    broken = jax.tree.map(jnp.array, random_llama)
    stack = broken.value.kinds[0]
    stack[...] = stack[...] * 1e6
    with pytest.raises(UserError, match=r"not finite in chunk 1 with KV delta:interval=8/q4_0"):
        measure(broken, random_chunks(4, CTX))


TEXT = texts.Text("a.txt", "", "00")


def named(model) -> LoadedModel:
    return LoadedModel("random", model.config, model, Tokenizer.load(demo_folder()))


def evaluated(random_llama, chunks, settings=SETTINGS, store=None, progress=lambda done: None):
    run = runner.evaluate(named(random_llama), TEXT, chunks, settings, progress, store)
    return [dataclasses.replace(row, tokens_per_second=0) for row in run.rows]


def test_batches_of_an_interrupted_run_are_not_measured_again(
    random_llama, random_chunks, tmp_path
):
    """And in the end the figures are those of a run that was not interrupted."""
    chunks, told = random_chunks(5, CTX), []
    settings = dataclasses.replace(SETTINGS, batch=2)
    opened = lambda: Store.open(tmp_path / "run", {}, say=told.append)
    store, batches = opened(), runner.measure(random_llama, chunks, settings, lambda done: None)
    next(batches)
    store.save(*next(batches))  # chunks 2 and 3, as if the file of 0 and 1 had been lost
    rows = evaluated(random_llama, chunks, settings, opened(), told.append)
    assert told == [4, 2, 2, 1, 1]
    assert rows == evaluated(random_llama, chunks)
    told.clear()
    assert evaluated(random_llama, chunks, settings, opened(), told.append) == rows
    assert told == [10]


def test_the_identity_of_a_run_names_what_its_figures_depend_on(random_llama):
    identity = lambda settings: runner.identity(named(random_llama), TEXT, settings)
    base = identity(SETTINGS)
    assert base["--kv"] == ["f32", PACKED]
    assert identity(dataclasses.replace(SETTINGS, batch=3)) == base
    for change in ({"ctx": CTX + 1}, {"chunks": 3}, {"sequential": True}, {"reads": "raw"}):
        assert identity(dataclasses.replace(SETTINGS, **change)) != base


def test_rows_are_made_of_all_tokens_and_the_first_is_the_base():
    rng = np.random.default_rng(0)
    measured = results.Measured(
        nll=rng.gamma(2.0, size=(2, 3, 50)),
        kld=rng.gamma(0.1, size=(2, 3, 50)),
        same_top=rng.random((2, 3, 50)) < 0.9,
        squares=rng.gamma(2.0, size=(2, 3, 4, 3, 2)),
        seconds=np.array([2.0, 4.0]),
    )
    sizes = [results.Size(16.0, 1000), results.Size(4.5, 281)]
    base, row = results.rows(SPECS, 100, measured, sizes)
    assert (base.kv, row.kv) == ("f32", PACKED)
    assert (base.delta_ln_ppl, base.delta_ln_ppl_stderr) == (0, 0)
    assert row.ppl == pytest.approx(np.exp(measured.nll[1].mean()))
    assert row.delta_ln_ppl == pytest.approx(np.log(row.ppl / base.ppl))
    difference = (measured.nll[1] - measured.nll[0]).ravel()
    assert row.delta_ln_ppl_stderr == pytest.approx(difference.std(ddof=1) / np.sqrt(150))
    assert row.probability_rms == pytest.approx(
        np.sqrt(np.mean((np.exp(-measured.nll[1]) - np.exp(-measured.nll[0])) ** 2))
    )
    assert row.kld_mean == pytest.approx(measured.kld[1].mean())
    assert row.kld_p999 == pytest.approx(np.quantile(measured.kld[1], 0.999))
    assert row.kld_median == pytest.approx(np.median(measured.kld[1]))
    assert row.kld_p99 == pytest.approx(np.quantile(measured.kld[1], 0.99))
    assert row.kld_max == measured.kld[1].max()
    assert row.same_top == pytest.approx(measured.same_top[1].mean())
    assert len(row.by_position.at) == 32
    assert row.by_layer is not None
    assert row.by_layer.output == pytest.approx(
        [
            np.sqrt(measured.squares[1, :, l, 2, 0].sum() / measured.squares[1, :, l, 2, 1].sum())
            for l in range(4)
        ]
    )
    assert (row.bits_per_value, row.kv_bytes) == (4.5, 281)
    assert (base.tokens_per_second, row.tokens_per_second) == (150, 75)


def test_the_interval_is_that_of_resampled_chunks():
    """Every token of a chunk changes alike: many tokens, but only as many witnesses as chunks."""
    change = np.random.default_rng(0).normal(0.1, 0.05, (8, 1))
    nll = np.stack([np.ones((8, 100)), np.ones((8, 100)) + change])
    blank = np.zeros_like(nll)
    measured = results.Measured(
        nll, blank, blank == 0, np.zeros((2, 8, 0, 3, 2)), seconds=np.ones(2)
    )
    _, row = results.rows(SPECS, 102, measured, [results.Size(32, 1), results.Size(4.5, 1)])
    low, high = row.change_interval or (0, 0)
    assert low < row.change.value < high
    assert high - low > 100 * 2.5 * change.std() / np.sqrt(8)
    assert row.by_layer is None


@pytest.mark.parametrize(
    ("spec", "bits"), [("f32", 32), ("f16", 16), ("bf16", 16), ("q8_0", 8.5), ("q4_0", 4.5)]
)
def test_bits_per_value_are_exact(random_llama, spec, bits):
    assert results.cache_size(random_llama.config, parse_spec(spec), 512).bits_per_value == bits


def test_bits_per_value_of_delta(random_llama):
    size = results.cache_size(random_llama.config, parse_spec("delta"), 512)
    assert 4.5 < size.bits_per_value <= 5.05
    # 2 layers, 2 kv heads of 32 values, K and V
    assert size.kv_bytes == size.bits_per_value * 2 * 2 * 2 * 32 * 512 / 8


def test_default_formats_that_do_not_fit_are_left_out_with_a_line():
    kept, left_out = runner.default_specs(head_dim=64)
    assert tuple(map(str, kept)) == runner.DEFAULT_FORMATS
    assert not left_out
    kept, left_out = runner.default_specs(head_dim=8)
    assert [str(spec) for spec in kept] == ["f16"]
    assert len(left_out) == len(runner.DEFAULT_FORMATS) - 1
    assert all(f"left out {name}:" in "\n".join(left_out) for name in runner.DEFAULT_FORMATS[1:])
