"""Caches saved on one mesh and restored on another, whole or refused."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deltakv_jax.cache import KVCache
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.generation import saving
from deltakv_jax.generation.saving import Prefilled, fingerprint
from deltakv_jax.generation.steps import empty_cache
from deltakv_jax.model import Llama
from deltakv_jax.parallel.mesh import make_mesh
from deltakv_jax.parallel.placement import put
from deltakv_jax.parallel.sharding import BATCH, WHOLE, cache_specs, shardings
from tests.parallel.material import CONFIG, model_on, tensor4

MODEL = jax.eval_shape(lambda: Llama(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(0)))
SPECS = ("f32/delta", "q4_0:rotate/bf16")


def filled(mesh, seed: int = 0) -> Prefilled:
    """A cache of two sequences whose every bit is random, where a mesh has it."""
    draw = np.random.default_rng(seed)
    noise = lambda x: np.frombuffer(draw.bytes(x.nbytes), x.dtype).reshape(x.shape)
    specs = [parse_spec(spec) for spec in SPECS]
    cache = jax.tree.map(noise, empty_cache(CONFIG, specs, capacity=40, batch=2))
    cache = jax.tree.map(lambda x, spec: put(mesh, spec, x), cache, cache_specs(cache))
    logits = draw.standard_normal((2, CONFIG.vocab_size), np.float32)
    return Prefilled(put(mesh, BATCH, logits), put(mesh, WHOLE, np.array([3, 4])), cache)


def assert_same(got: Prefilled, want: Prefilled) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_placed(cache: KVCache, mesh) -> None:
    places = shardings(mesh, cache_specs(cache))
    for leaf, place in zip(jax.tree.leaves(cache), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def named(model: Llama) -> dict:
    """In place of a fingerprint, whose compilation would be most of the time of these tests."""
    return {"layers": model.config.layers}


@pytest.fixture(autouse=True)
def named_models(monkeypatch):
    monkeypatch.setattr(saving, "fingerprint", named)


@pytest.fixture
def saved(tmp_path) -> Path:
    """What four devices have saved."""
    saving.save(tmp_path / "story", MODEL, filled(tensor4()))
    return tmp_path / "story"


@pytest.mark.parametrize("shape", [{"tensor": 4}, {"tensor": 2, "data": 2}, {"tensor": 2}])
def test_a_cache_goes_to_a_mesh_of_any_shape(saved, shape):
    mesh = make_mesh(shape)
    got = saving.load(saved, MODEL, mesh)
    assert_same(got, filled(None))
    assert_placed(got.cache, mesh)


def test_a_cache_goes_from_a_mesh_to_one_device_and_back(saved):
    got = saving.load(saved, MODEL)
    assert_same(got, filled(None))
    saving.save(saved, MODEL, got)
    assert_same(saving.load(saved, MODEL, tensor4()), filled(None))


def test_a_model_is_the_same_wherever_it_lies():
    """A cache saved over one mesh is of this model over another, and on one device."""
    assert fingerprint(model_on(tensor4())) == fingerprint(model_on(None))


def test_a_mesh_whose_rows_do_not_divide_the_batch_is_refused(saved):
    with pytest.raises(UserError, match=r"^data=4 does not divide a batch of 2; data=1 or 2 would"):
        saving.load(saved, MODEL, make_mesh({"data": 4}))


KILLED = """
import os, signal, sys
from pathlib import Path
import orbax.checkpoint as ocp
from deltakv_jax.generation import saving
from tests.parallel.material import tensor4
from tests.parallel.test_saving import MODEL, filled, named

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

saving.fingerprint = named
ocp.Checkpointer.close = die  # the last that orbax does in both jobs
if sys.argv[2] == "save":
    saving.save(Path(sys.argv[1]), MODEL, filled(tensor4(), seed=1))
else:
    saving.load(Path(sys.argv[1]), MODEL, tensor4())
"""


@pytest.mark.parametrize("job", ["save", "load"])
def test_what_is_killed_on_a_mesh_leaves_the_cache_that_was_there(saved, job):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, saved, job], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert_same(saving.load(saved, MODEL, tensor4()), filled(None))
    saving.save(saved, MODEL, filled(tensor4(), seed=2))
    assert_same(saving.load(saved, MODEL), filled(None, seed=2))
