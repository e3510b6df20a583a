"""A saved cache comes back bit for bit, or is refused in one line; a save never loses one."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.cache import KVCache, make_cache
from deltakv_jax.cache.checkpoint import check_folder, load_cache, save_cache
from deltakv_jax.cache.grow import grow
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError

MODEL = {"layers": 3, "rope_theta": 1e4, "rope_scaling": {"factor": 8.0}, "tied": False}
SPECS = (
    *("f32", "bf16", "f16", "q8_0", "q4_0:rotate", "delta", "delta:interval=4/q4_0"),
    *("layered", "layered:bits=3:window=0:centre/q8_0"),
)


def filled(*specs: str, capacity: int = 40, seed: int = 0) -> KVCache:
    """A cache of two sequences whose every bit is random, NaNs among the values."""
    kinds = [parse_spec(spec) for spec in specs]
    cache = make_cache(
        kinds, layers=len(kinds), kv_heads=2, head_dim=32, capacity=capacity, batch=2
    )
    draw = np.random.default_rng(seed)
    noise = lambda x: jnp.asarray(np.frombuffer(draw.bytes(x.nbytes), x.dtype).reshape(x.shape))
    return dataclasses.replace(
        cache, stacks=jax.tree.map(noise, cache.stacks), lengths=jnp.array([21, 20])
    )


def assert_same(got: KVCache, want: KVCache) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def saved(tmp_path) -> Path:
    save_cache(tmp_path / "story", filled("q8_0"), model=MODEL)
    return tmp_path / "story"


@pytest.mark.parametrize("specs", [*((spec,) for spec in SPECS), ("f16", "delta", "f16")])
def test_every_format_comes_back_bit_for_bit(tmp_path, specs):
    cache = filled(*specs)
    save_cache(tmp_path / "story", cache, model=MODEL)
    got, extra = load_cache(tmp_path / "story", model=MODEL)
    assert_same(got, cache)
    assert extra == {}


def test_extra_arrays_come_back_too(saved):
    extra = {"logits": jnp.array([[-jnp.inf, -0.0]]), "last": jnp.array([3, 4])}
    save_cache(saved, filled("f32"), model=MODEL, extra=extra)
    _, got = load_cache(saved, model=MODEL)
    as_bytes = lambda arrays: {name: np.asarray(x).tobytes() for name, x in arrays.items()}
    assert as_bytes(got) == as_bytes(extra)


def test_a_cache_saved_in_place_of_another_leaves_no_other(saved):
    later = filled("delta", seed=1)
    save_cache(saved, later, model=MODEL)
    assert_same(load_cache(saved, model=MODEL)[0], later)
    assert len(list(saved.iterdir())) == 1


def test_a_file_is_never_written_to(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a saved cache"):
        save_cache(tmp_path / "notes", filled("f16"), model=MODEL)
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_folder_of_other_things_is_never_written_to(tmp_path):
    (tmp_path / "0").mkdir()
    with pytest.raises(UserError, match="exists and is not a saved cache"):
        save_cache(tmp_path, filled("f16"), model=MODEL)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    check_folder(tmp_path)
    save_cache(tmp_path, filled("f16"), model=MODEL)
    check_folder(tmp_path)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_folder_without_a_cache_is_named(tmp_path, name):
    with pytest.raises(UserError, match=r"^no saved cache in "):
        load_cache(tmp_path / name, model=MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 4}, "is of another model: layers is 3 there, 4 here"),
        ({"rope_scaling": None}, "rope_scaling is {'factor': 8.0} there, None here"),
        ({"weights": 7}, "weights is None there, 7 here"),
    ],
)
def test_the_cache_of_another_model_is_refused(saved, change, message):
    with pytest.raises(UserError, match=message):
        load_cache(saved, model=MODEL | change)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_format_version_is_refused(saved):
    edit(saved / "0" / "record.json", version=1)
    with pytest.raises(UserError, match=r"has format version 1, expected 2$"):
        load_cache(saved, model=MODEL)


@pytest.mark.parametrize(
    "changes", [{"capacity": 39}, {"specs": ["q4_0"]}, {"files": {}}, {"format": "a tale"}]
)
def test_a_record_that_was_edited_is_refused(saved, changes):
    edit(saved / "0" / "record.json", **changes)
    with pytest.raises(UserError, match=r"is damaged: record\.json is not"):
        load_cache(saved, model=MODEL)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
def test_every_damaged_file_is_refused_in_one_line(saved, tmp_path, harm):
    files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file()]
    assert len(files) > 5
    for file in (name for name in files if (saved / name).stat().st_size):
        copy = shutil.copytree(saved, tmp_path / "copy")
        harm(copy / file)
        with pytest.raises(UserError, match="is damaged: ") as refused:
            load_cache(copy, model=MODEL)
        assert "\n" not in str(refused.value)
        shutil.rmtree(copy)


KILLED = """
import os, signal, sys
from pathlib import Path
import orbax.checkpoint as ocp
from deltakv_jax import checkpoint
from deltakv_jax.cache.checkpoint import save_cache
from tests.cache.test_checkpoint import MODEL, filled

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(*eval(sys.argv[2]), die)
save_cache(Path(sys.argv[1]), filled("delta", seed=1), model=MODEL)
"""


def save_and_be_killed(folder: Path, where: str) -> None:
    """Saves a cache in another process, which kills itself where it should call `where`."""
    words = [sys.executable, "-c", KILLED, folder, where]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(words, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL


WHERE = ("ocp.Checkpointer, 'close'", "checkpoint, '_write_record'", "checkpoint, '_sync'")


@pytest.mark.parametrize("where", [*WHERE, "Path, 'rename'"])
def test_a_killed_save_leaves_the_cache_that_was_there(saved, where):
    save_and_be_killed(saved, where)
    assert len(list(saved.iterdir())) == 2
    assert_same(load_cache(saved, model=MODEL)[0], filled("q8_0"))
    save_cache(saved, filled("delta", seed=2), model=MODEL)
    assert [path.name for path in saved.iterdir()] == ["1"]
    assert_same(load_cache(saved, model=MODEL)[0], filled("delta", seed=2))


def test_a_save_killed_before_the_old_cache_is_gone_has_replaced_it(saved):
    where = "checkpoint.shutil, 'rmtree'"  # of the scratch folder, which by then has another name
    save_and_be_killed(saved, where)
    assert_same(load_cache(saved, model=MODEL)[0], filled("delta", seed=1))


def test_a_first_save_that_is_killed_is_no_cache(tmp_path):
    where = "checkpoint, '_write_record'"
    save_and_be_killed(tmp_path / "story", where)
    with pytest.raises(UserError, match=r"^no saved cache in "):
        load_cache(tmp_path / "story", model=MODEL)


@pytest.mark.parametrize("spec", SPECS)
def test_a_grown_cache_holds_the_same_and_zeros(spec):
    cache = filled(spec)
    grown = grow(cache, 70)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, filled(spec, capacity=70))
    for old, new in zip(*map(jax.tree.leaves, (cache.stacks, grown.stacks)), strict=True):
        rows = old.shape[3]
        assert np.asarray(new[:, :, :, :rows]).tobytes() == np.asarray(old).tobytes()
        assert not new[:, :, :, rows:].any()


def test_a_cache_does_not_shrink():
    cache = filled("f16")
    assert grow(cache, 12) is cache
