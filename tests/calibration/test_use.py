"""Caches that take a calibration's means: on one device, over a mesh, in figures."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import deltakv_jax as dk
from deltakv_jax.cache import Sides
from deltakv_jax.codec import KVSpec, LayerSpecs, parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import runner, scoring, texts
from deltakv_jax.evaluation.layers import layer_squares
from deltakv_jax.evaluation.learning import learn
from deltakv_jax.evaluation.protocol import Chunks
from deltakv_jax.evaluation.runner import Settings, evaluate
from deltakv_jax.evaluation.store import Store
from deltakv_jax.evaluation.texts import Text
from deltakv_jax.generation.saving import fingerprint
from deltakv_jax.parallel.sharding import TENSOR
from deltakv_jax.weights import LoadedModel, load_model
from tests.calibration.material import CONFIG, SPECS, make_calibration, model, random_tokens
from tests.parallel import material as wide

CTX = 40
F32, CENTRED = map(parse_spec, ("f32", "layered:window=0:sinks=0:centre"))
NO_TOKENIZER: Any = None


def test_a_cache_holds_the_means_of_its_layers():
    made = make_calibration()
    sides = parse_spec("layered:centre"), parse_spec("f16/layered:centre")
    cache = dk.empty_cache(CONFIG, sides, capacity=16, batch=3, calibration=made)
    first, second = cache.stacks
    for leaf, want in (
        (first.centre.k["mean"], made.k_mean[0]),
        (first.centre.v["mean"], made.v_mean[0]),
        (second.centre.v["mean"], made.v_mean[1]),
    ):
        np.testing.assert_array_equal(leaf[0, :, :, 0], np.stack([want] * 3))
    assert not second.centre.k


def test_means_of_another_model_are_refused():
    with pytest.raises(UserError, match="the calibration is of another model, random: kv_heads"):
        dk.empty_cache(wide.CONFIG, CENTRED, capacity=16, calibration=make_calibration())


def test_each_layer_has_its_own_format():
    cache = dk.empty_cache(CONFIG, LayerSpecs("mine", SPECS), capacity=16)
    assert cache.layout.kinds == SPECS


def test_the_means_are_split_by_kv_heads():
    mesh, made = wide.tensor4(), make_calibration(wide.CONFIG)
    make = functools.partial(
        dk.empty_cache, wide.CONFIG, CENTRED, capacity=16, batch=2, calibration=made
    )
    leaves = make(mesh=mesh).stacks[0].centre
    for leaf, want in ((leaves.k["mean"], made.k_mean), (leaves.v["mean"], made.v_mean)):
        assert leaf.sharding.is_equivalent_to(
            jax.NamedSharding(mesh, P(None, None, TENSOR)), leaf.ndim
        )
        np.testing.assert_array_equal(np.asarray(leaf)[:, 1, :, 0], want)


@pytest.mark.slow
def test_a_chunk_over_a_mesh_is_that_of_one_device():
    centre = make_calibration(wide.CONFIG).centre
    tokens = np.random.default_rng(0).integers(0, 96, (1, CTX), np.int32)

    def hidden(mesh) -> np.ndarray:
        run = functools.partial(scoring.chunk_hidden, spec=CENTRED, piece=CTX, mesh=mesh)
        return np.asarray(run(wide.model_on(mesh), tokens, centre))

    np.testing.assert_allclose(hidden(wide.tensor4()), hidden(None), atol=0.05)


def hidden_of(spec: KVSpec, centre: Sides, **options) -> np.ndarray:
    tokens = random_tokens(1, CTX)[0]
    found = scoring.chunk_hidden(model(), tokens, centre, spec=spec, **{"piece": 16} | options)
    return np.asarray(found)


@pytest.mark.slow
def test_whatever_is_taken_off_is_added_again():
    """Means that are not the model's own widen the steps; what is read stays about the same."""
    made = make_calibration(size=0.5).centre
    none = jax.tree.map(np.zeros_like, made)
    exact = hidden_of(F32, made)
    plain, centred = (
        np.linalg.norm(hidden_of(CENTRED, centre) - exact) / np.linalg.norm(exact)
        for centre in (none, made)
    )
    assert plain < 0.2
    assert plain < centred < 2 * plain


@pytest.mark.slow
def test_raw_reads_give_what_they_give_without_means():
    """In pieces, so that the second one reads what is stored of the first."""
    made = make_calibration().centre
    exact, got = (hidden_of(spec, made, reads="raw") for spec in (F32, CENTRED))
    np.testing.assert_allclose(got[:16], exact[:16], atol=1e-5)
    errors = np.linalg.norm(got - exact, axis=-1)[16:] / np.linalg.norm(exact, axis=-1)[16:]
    assert 1e-4 < errors.mean() < 0.2


@pytest.mark.slow
def test_errors_of_a_layer_are_those_of_keys_and_values_with_their_means():
    made = make_calibration(size=0.5)
    squares = np.asarray(
        layer_squares(model(), random_tokens(1, CTX)[0], made.centre, specs=(CENTRED,), piece=16)
    )
    errors = np.sqrt(squares[..., 0] / squares[..., 1])[0]
    assert np.all(errors[:, :2] < 0.15), errors
    assert np.all(errors[:, :2] > 0.03), errors


def test_a_run_with_another_calibration_is_another_run(tmp_path):
    loaded = LoadedModel("random", CONFIG, model(), NO_TOKENIZER, None)
    text = Text("random", "", "")
    identities = [
        runner.identity(
            loaded, text, Settings(specs=(CENTRED,), calibration=make_calibration(size=s))
        )
        for s in (1.0, 2.0)
    ]
    store = Store.open(tmp_path / "run", identities[0], say=print)
    store._make_folder()
    store._write_record()
    Store.open(tmp_path / "run", identities[0], say=print)
    with pytest.raises(UserError, match="--kv-calibration was "):
        Store.open(tmp_path / "run", identities[1], say=print)


def test_figures_of_another_models_calibration_are_refused():
    loaded = LoadedModel("random", CONFIG, model(), NO_TOKENIZER, None)
    other = make_calibration(fingerprint=fingerprint(model()) | {"weights_checksum": 1})
    chunks = Chunks(random_tokens(1, CTX), 16, 1)
    with pytest.raises(UserError, match="weights_checksum is 1 there"):
        evaluate(loaded, Text("", "", ""), chunks, Settings(specs=(CENTRED,), calibration=other))


@pytest.mark.slow
def test_a_real_model_gains_by_its_means(shared):
    """Learned on another text than the one that is measured on."""
    loaded = load_model(shared / "models" / "tiny1m", "f32")
    text = lambda name: texts.load_text(str(shared / "texts" / name))
    cut = lambda name, chunks: runner.cut(
        loaded, text(name), Settings(specs=(), ctx=256, chunks=chunks)
    )
    found = learn(loaded.model, cut("wikitext-2-raw-test.txt", 4).tokens)
    made = make_calibration(
        loaded.config,
        k_mean=found["k"].mean.astype(np.float16),
        v_mean=found["v"].mean.astype(np.float16),
        fingerprint=fingerprint(loaded.model),
    )
    names = ("f32", "layered:window=0:sinks=0", "layered:window=0:sinks=0:centre")
    settings = Settings(specs=tuple(map(parse_spec, names)), ctx=256, calibration=made)
    run = evaluate(loaded, text("tinystories.txt"), cut("tinystories.txt", 16), settings)
    _, plain, centred = run.rows
    assert centred.kld_mean < 0.75 * plain.kld_mean
