"""Models of shapes are what loading makes, and no weight is read for them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

from deltakv_jax.errors import UserError
from deltakv_jax.planning.models import plan_model, stored_as
from deltakv_jax.weights import demo_folder, huggingface, load_model
from deltakv_jax.weights.checkpoint import save_checkpoint
from deltakv_jax.weights.gguf.file import GGUFFile
from deltakv_jax.weights.load import open_model, read_weights
from scripts.fuzzing.gguf_files import Stored, random_tensor
from tests.weights.gguf.material import CONFIG, write_model

WIDE = dataclasses.replace(CONFIG, width=256, head_dim=64, ffn=256, kv_heads=4)


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A GGUF file of several types, one of which cannot stay packed; `down` has two."""
    types: dict[str, Type] = {"gate": Type.Q4_0, "down": Type.Q6_K, "up": Type.Q5_0}
    down = random_tensor(np.random.default_rng(1), (WIDE.width, WIDE.ffn), Type.Q4_0)
    tensors: dict[str, Stored | None] = {"blk.1.ffn_down.weight": down}
    return write_model(tmp_path / "mixed.gguf", config=WIDE, types=types, tensors=tensors)


def shapes(model) -> tuple:
    leaves, tree = jax.tree.flatten(model)
    return tree, [(leaf.shape, leaf.dtype) for leaf in leaves]


@pytest.mark.parametrize("weights", [None, "f32", "bf16", "q4_0"])
def test_a_folder_is_planned_as_it_is_loaded(weights):
    planned = plan_model("demo", weights, on_cpu=True)
    loaded = load_model(demo_folder(), weights)
    assert (planned.name, planned.config) == (loaded.name, loaded.config)
    assert shapes(planned.model) == shapes(loaded.model)


@pytest.mark.parametrize("weights", [None, "f32"])
def test_a_gguf_file_is_planned_as_it_is_loaded(mixed, weights):
    planned = plan_model(str(mixed), weights, on_cpu=True)
    assert planned.name == "mixed"
    assert shapes(planned.model) == shapes(load_model(mixed, weights).model)


def test_a_converted_model_is_planned_as_it_is_loaded(mixed, tmp_path, monkeypatch):
    source = open_model(mixed)
    save_checkpoint(tmp_path / "converted", source, read_weights(source))
    loaded = load_model(tmp_path / "converted")
    monkeypatch.setattr("deltakv_jax.checkpoint.Saved.arrays", None)
    planned = plan_model(str(tmp_path / "converted"), None, on_cpu=True)
    assert (planned.name, planned.config) == (loaded.name, loaded.config)
    assert shapes(planned.model) == shapes(loaded.model)
    with pytest.raises(UserError, match="holds f32 and q4_0 and q6_k; convert the model anew"):
        plan_model(str(tmp_path / "converted"), "q8_0", on_cpu=True)


def test_no_weight_is_read(mixed, monkeypatch):
    def refuse(*args):
        raise AssertionError("weights are read")

    monkeypatch.setattr(huggingface, "read_tensor", refuse)
    monkeypatch.setattr(GGUFFile, "bytes_of", refuse)
    for name in ("demo", str(mixed), "llama3.2-1b"):
        plan_model(name, "q4_0", on_cpu=True)


def test_what_suits_the_device_that_is_meant(mixed):
    """The defaults of a GPU, though there is none here."""
    stored = lambda name, on_cpu: stored_as(plan_model(name, None, on_cpu=on_cpu).model)
    assert (stored("demo", True), stored("demo", False)) == (["f32"], ["f16"])
    assert (stored("llama3.1-8b", True), stored("llama3.1-8b", False)) == (["f32"], ["bf16"])
    assert stored(str(mixed), True) == ["f32", "q4_0", "q6_k"]
    assert stored(str(mixed), False) == ["bf16", "f32", "q4_0", "q6_k"]


@pytest.mark.parametrize("name", ["llama4", "absent/folder", "hf:meta/llama"])
def test_an_unknown_model_is_refused_with_the_known_ones(name):
    with pytest.raises(UserError, match=r"no model '.*' here; known are llama3.1-8b, .* and demo"):
        plan_model(name, None, on_cpu=True)


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path):
    path = write_model(tmp_path / "a.gguf", config=dataclasses.replace(CONFIG, ffn=48))
    says = "down.weight has rows of 48 values, which are stored in multiples of 32"
    with pytest.raises(UserError, match=says):
        plan_model(str(path), "q4_0", on_cpu=True)
