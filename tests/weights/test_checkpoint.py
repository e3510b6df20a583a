"""A converted model comes back bit for bit, or is refused in one line; a conversion loses none."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from deltakv_jax import checkpoint as folders
from deltakv_jax.attention.plain import attend_plain
from deltakv_jax.cache import make_cache
from deltakv_jax.cache.checkpoint import save_cache
from deltakv_jax.codec import parse_spec
from deltakv_jax.config import LlamaConfig, RopeScaling
from deltakv_jax.errors import UserError
from deltakv_jax.model import Llama
from deltakv_jax.weights import checkpoint, load_model, save_model, storage
from deltakv_jax.weights.checkpoint import Checkpoint, check_folder, save_checkpoint
from deltakv_jax.weights.gguf.file import open_file
from deltakv_jax.weights.load import open_model, read_weights
from tests.models import abstract, random_model

CONFIG = LlamaConfig(
    vocab_size=260,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=False,
)
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32)


@dataclasses.dataclass
class Opened:
    """What a model is from, with a tokenizer of one file."""

    config: LlamaConfig = CONFIG
    name: str = "opened"

    def save_tokenizer(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def drawn(config: LlamaConfig = CONFIG, seed: int = 0) -> Llama:
    """A model whose every bit is random, NaNs among the weights."""
    draw = np.random.default_rng(seed)
    noise = lambda x: jnp.asarray(np.frombuffer(draw.bytes(4 * x.size), x.dtype).reshape(x.shape))
    return jax.tree.map(noise, abstract(config))


def assert_same(got: Llama, want: Llama) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@jax.jit
def logits(model: Llama, tokens: jax.Array) -> jax.Array:
    return model.logits(model.hidden(tokens, tokens, None, attend=attend_plain)[0])


def convert(source: Path, dest: Path, weights: str | None = None) -> Llama:
    opened = open_model(source)
    model = read_weights(opened, weights)
    save_checkpoint(dest, opened, model)
    return model


@pytest.fixture
def source(folder: Path, tmp_path: Path) -> Path:
    """A folder of Hugging Face's whose rows are long enough for blocks."""
    model, tokenizer = random_model(CONFIG), folder / "tokenizer.json"
    save_model(tmp_path / "wide", model, tokenizer, bos="<bos>", eos="<eos>")
    (tmp_path / "wide" / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    (tmp_path / "wide" / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    return tmp_path / "wide"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "saved", Opened(), drawn())
    return tmp_path / "saved"


@pytest.mark.parametrize("weights", ["f32", "bf16", "f16", "q8_0", "q4_0", "native", None])
def test_every_type_comes_back_bit_for_bit(source: Path, tmp_path: Path, weights: str | None):
    model = convert(source, tmp_path / "dest", weights)
    for asked in (None, weights, "native"):
        loaded = load_model(tmp_path / "dest", asked)
        assert_same(loaded.model, model)
    assert loaded.name == "wide"
    assert loaded.config == CONFIG


def test_blocks_of_a_file_stay_as_they_are(shared: Path, tmp_path: Path):
    file = shared / "models" / "random256-Q4_K_M.gguf"
    model = convert(file, tmp_path / "dest")
    assert Checkpoint(tmp_path / "dest").kinds == ["q4_k", "q6_k"]
    loaded = load_model(tmp_path / "dest")
    assert_same(loaded.model, model)
    assert loaded.model.down.layout is not None
    assert loaded.config == load_model(file).config
    assert np.isfinite(logits(loaded.model, jnp.arange(6)[None])).all()


def test_a_converted_model_is_converted_again(source: Path, tmp_path: Path):
    model = convert(source, tmp_path / "first", "q8_0")
    convert(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    again = load_model(tmp_path / "second")
    assert_same(again.model, model)
    assert again.tokenizer.encode("abc") == load_model(source).tokenizer.encode("abc")


@pytest.mark.parametrize(
    "changes",
    [
        {"tied": True, "rope_scaling": SCALING},
        {"qkv_bias": True, "rope_factors": tuple(1.1 ** np.arange(8))},
        {"qk_norm": True, "layers": 1},
    ],
)
def test_every_config_and_every_bit_comes_back(tmp_path: Path, changes: dict):
    config = dataclasses.replace(CONFIG, **changes)
    save_checkpoint(tmp_path / "dest", Opened(config), drawn(config))
    opened = Checkpoint(tmp_path / "dest")
    assert opened.config == config
    hash(opened.config)
    assert_same(opened.model(), drawn(config))


@pytest.mark.parametrize("on_cpu", [False, True])
def test_16_bits_move_between_devices(source, tmp_path, monkeypatch, on_cpu: bool):
    """An accelerator has bfloat16 dense, a CPU its bits; each loads what the other wrote."""
    dense = lambda name: storage.Dense(np.dtype(ml_dtypes.bfloat16))
    elsewhere = lambda: [monkeypatch.setattr(m, "floats", dense) for m in (storage, checkpoint)]
    if not on_cpu:
        elsewhere()
    written = convert(source, tmp_path / "dest", "bf16")
    monkeypatch.undo()
    if on_cpu:
        elsewhere()
    read = load_model(tmp_path / "dest", "bf16").model
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(read.query)}
    assert dtypes == {jnp.dtype(jnp.bfloat16 if on_cpu else jnp.uint16)}
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(written), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_tokenizer_of_a_folder_comes_along(source: Path, tmp_path: Path):
    convert(source, tmp_path / "dest")
    was, now = (load_model(path).tokenizer for path in (source, tmp_path / "dest"))
    assert now.bos_id == was.bos_id == 0
    assert now.eos_ids == was.eos_ids == {1, 2, 9}
    hello = [{"role": "user", "content": "hé"}]
    assert now.encode_chat(hello) == was.encode_chat(hello)
    assert now.decode(now.encode_chat(hello)) == "hé!"


@pytest.mark.parametrize("name", ["tiny1m-f32", "random256-Q4_0"])
def test_the_tokenizer_of_a_gguf_file_comes_along(shared: Path, tmp_path: Path, name: str):
    file = shared / "models" / f"{name}.gguf"
    convert(file, tmp_path / "dest")
    was, now = (open_model(path).tokenizer() for path in (file, tmp_path / "dest"))
    text = "Once upon a time,\n  there was a ½."
    assert now.encode(text) == was.encode(text)
    assert now.decode(now.encode(text)) == was.decode(was.encode(text))
    assert (now.bos_id, now.eos_ids) == (was.bos_id, was.eos_ids)
    metadata = open_file(file).metadata
    kept = json.loads((tmp_path / "dest" / "0" / "tokenizer" / "gguf.json").read_text())
    assert kept == {key: metadata[key] for key in metadata if key.startswith("tokenizer.")}


def test_another_type_is_refused(source: Path, tmp_path: Path):
    convert(source, tmp_path / "dest", "q8_0")
    with pytest.raises(UserError, match=r"dest holds q8_0; convert the model anew for q4_0$"):
        load_model(tmp_path / "dest", "q4_0")


STEPS = (
    (Opened, "save_tokenizer"),
    (folders.ocp.Checkpointer, "save"),
    (folders.ocp.Checkpointer, "close"),
    (folders, "_digest"),
    (folders, "_sync"),
    (Path, "rename"),
)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[1])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=type)
def test_a_failed_conversion_changes_nothing(saved, tmp_path, monkeypatch, step, error):
    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(*step, fail)
        for dest in (saved, tmp_path / "new"):
            with pytest.raises((UserError, KeyboardInterrupt)) as caught:
                save_checkpoint(dest, Opened(), drawn(seed=1))
            if isinstance(caught.value, UserError):
                assert str(caught.value) == f"cannot save a model in {dest}: disk full"
    assert_same(Checkpoint(saved).model(), drawn())
    assert [path.name for path in saved.iterdir()] == ["0"]
    with pytest.raises(UserError, match=str(tmp_path / "new")):
        load_model(tmp_path / "new")
    save_checkpoint(tmp_path / "new", Opened(), drawn())


def test_a_model_takes_the_place_of_another(saved: Path):
    later = drawn(seed=1)
    save_checkpoint(saved, Opened(name="later"), later)
    assert Checkpoint(saved).name == "later"
    assert_same(Checkpoint(saved).model(), later)
    assert len(list(saved.iterdir())) == 1


def test_nothing_else_is_written_over(source: Path, tmp_path: Path):
    cache = make_cache([parse_spec("f16")], layers=1, kv_heads=1, head_dim=32, capacity=8, batch=1)
    save_cache(tmp_path / "cache", cache, model={})
    for taken in (source, tmp_path / "cache", source / "config.json"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match="exists and is not a saved model; name a new folder"):
            save_checkpoint(taken, Opened(), drawn())
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match=r"record\.json is not that of a model$"):
        load_model(tmp_path / "cache")


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")
    check_folder(tmp_path / "absent")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
def test_every_damaged_file_is_refused_in_one_line(source: Path, tmp_path: Path, harm):
    convert(source, tmp_path / "dest", "q4_0")
    files = [path for path in (tmp_path / "dest").rglob("*") if path.is_file()]
    assert len(files) > 12
    for file in (path for path in files if path.stat().st_size):
        whole = file.read_bytes()
        harm(file)
        with pytest.raises(UserError) as refused:
            load_model(tmp_path / "dest")
        assert "\n" not in str(refused.value)
        assert str(tmp_path / "dest") in str(refused.value)
        file.write_bytes(whole)
    load_model(tmp_path / "dest")


def forge(folder: Path, **changes) -> None:
    """Changes a record and what vouches for it."""
    path = folder / "0" / "record.json"
    record = json.loads(path.read_text()) | changes
    head = {name: record.pop(name) for name in ("format", "version", "sha256")}
    path.write_text(json.dumps(head | {"sha256": folders._digest_of(record)} | record))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": dataclasses.asdict(CONFIG) | {"width": 64}}, r"embedding\.0\.values has shape"),
        ({"config": dataclasses.asdict(CONFIG) | {"head_dim": 3}}, "head_dim must be even"),
        ({"config": {}}, "is damaged: 'rope_scaling'"),
        ({"matrices": {}}, "is damaged: 'embedding'"),
        ({"arrays": {}}, "has shape None, expected"),
        ({"name": None, "matrices": 3}, "is damaged: "),
    ],
)
def test_a_record_that_describes_another_model_is_refused(saved: Path, changes, message: str):
    forge(saved, **changes)
    with pytest.raises(UserError, match=message) as refused:
        Checkpoint(saved).model()
    assert "\n" not in str(refused.value)
