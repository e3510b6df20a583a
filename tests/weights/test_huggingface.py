"""Every tensor is used exactly once, and each fault is named in one line."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import chex
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deltakv_jax.errors import UserError
from deltakv_jax.model import Llama
from deltakv_jax.weights import load_model
from deltakv_jax.weights.huggingface import NAMES, HuggingFaceSource, save_weights
from deltakv_jax.weights.roles import layer_shapes, model_shapes

Tensors = dict[str, np.ndarray]

QUERY = "model.layers.1.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"


def edit(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Rewrites the folder's tensors after `change` has worked on them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shard(folder: Path) -> dict[str, str]:
    """Spreads the tensors over two files; returns the index's map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for place in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == place}
        save_file(part, folder / place)
    write_index(folder, places)
    return places


def write_index(folder: Path, places: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_what_was_saved_is_loaded(folder: Path, model: Llama):
    chex.assert_trees_all_equal(load_model(folder).model, model)


def test_shards_are_the_same_model(folder: Path, model: Llama):
    shard(folder)
    chex.assert_trees_all_equal(load_model(folder).model, model)


def test_a_files_names_are_those_of_hugging_face(folder: Path, model: Llama):
    names = set(load_file(folder / "model.safetensors"))
    roles = model_shapes(model.config) | layer_shapes(model.config)
    assert names == {NAMES[role].format(layer) for role in roles for layer in range(2)}


@pytest.mark.parametrize("name", ["tiny1m", "stories260K"])
def test_real_models_load(shared: Path, name: str):
    loaded = load_model(shared / "models" / name)
    tensors = load_file(shared / "models" / name / "model.safetensors")
    count = lambda arrays: sum(array.size for array in arrays)
    assert count(jax.tree.leaves(loaded.model)) == count(tensors.values())
    assert loaded.name == name


def test_a_tied_head_may_be_repeated(folder: Path):
    edit_config(folder, tie_word_embeddings=True)
    embedding = NAMES["embedding"]
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding]}))
    assert load_model(folder).model.head is None


def test_a_tied_head_of_its_own_is_refused(folder: Path):
    edit_config(folder, tie_word_embeddings=True)
    refused(folder, "lm_head.weight is not the embedding that it is tied to")


def test_rope_frequencies_of_older_files_are_passed_over(folder: Path, model: Llama):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda tensors: tensors.update({name: np.ones(2, np.float32)}))
    chex.assert_trees_all_equal(load_model(folder).model, model)


def test_a_missing_tensor(folder: Path):
    edit(folder, lambda tensors: tensors.pop(QUERY))
    refused(folder, f"lacks the tensor {QUERY}, expected with shape [16, 8]")


def test_a_tensor_left_over(folder: Path):
    edit(folder, lambda tensors: tensors.update({"model.extra": np.ones(3)}))
    refused(folder, "the tensor model.extra has no place in the model")


def test_more_layers_than_the_config_says(folder: Path):
    edit_config(folder, num_hidden_layers=1)
    refused(folder, "model.layers.1.input_layernorm.weight has no place in the model (nor have 8")


def test_layers_without_end(folder: Path):
    """What is missing is found before anything as large is made."""
    edit_config(folder, num_hidden_layers=2**31 - 1)
    refused(folder, "lacks the tensor model.layers.2.")


def test_a_bias_is_left_over(folder: Path):
    name = "model.layers.0.self_attn.q_proj.bias"
    edit(folder, lambda tensors: tensors.update({name: np.ones(16)}))
    refused(folder, f"the tensor {name} has no place in the model")


def test_a_wrong_shape(folder: Path):
    edit(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY].T.copy()}))
    refused(folder, f"{QUERY} has shape [8, 16], expected [16, 8]")


def test_values_that_are_not_finite(folder: Path):
    edit(folder, lambda tensors: tensors[QUERY].__setitem__(0, np.nan))
    refused(folder, f"the tensor {QUERY} holds NaN or infinity")


def test_values_beyond_the_dtype(folder: Path):
    edit(folder, lambda tensors: tensors.update({QUERY: np.full((16, 8), 1e6, np.float32)}))
    load_model(folder, "bf16")
    with pytest.raises(UserError, match=f"the tensor {QUERY} does not fit f"):
        load_model(folder, "f16")


def test_a_type_that_is_no_float(folder: Path):
    edit(folder, lambda tensors: tensors.update({QUERY: np.ones((16, 8), np.int8)}))
    refused(folder, f"{QUERY} has type I8, supported are F64, F32, F16, BF16")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_file(folder: Path, keep: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, f"{path} is damaged: ")


@pytest.mark.parametrize("length", [0, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_header_past_the_end(folder: Path, length: int):
    path = folder / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(folder, f"{path} is damaged: ")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**50]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "Q9", "shape": [2], "data_offsets": [0, 8]},
    ],
)
def test_an_entry_that_cannot_be(folder: Path, entry: dict):
    header = json.dumps({"a": entry}).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    refused(folder, f"{path} is damaged: ")


@pytest.mark.parametrize("name", ["a\nb", "x" * 10**5])
def test_a_name_that_fits_no_line(folder: Path, name: str):
    edit(folder, lambda tensors: tensors.update({name: np.ones(3)}))
    refused(folder, "model.safetensors is damaged: a tensor is called ")


def test_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    refused(folder, f"{folder} has no weights: expected model.safetensors or {INDEX}")


def test_a_missing_shard(folder: Path):
    shard(folder)
    (folder / "part-1.safetensors").unlink()
    refused(folder, f"{folder / 'part-1.safetensors'}: no such file")


def test_an_index_without_a_map(folder: Path):
    shard(folder)
    write_index(folder, None)
    refused(folder, f"{INDEX}: weight_map is missing or empty")


@pytest.mark.parametrize("shard_name", ["../part-0.safetensors", "/dev/zero", "a\nb", 3, None])
def test_an_index_that_leads_elsewhere(folder: Path, shard_name: object):
    places = shard(folder)
    write_index(folder, places | {QUERY: shard_name})
    refused(folder, f"{json.dumps(shard_name)} is no file of the same folder")


@pytest.mark.parametrize("shard_name", ["..", ".", ""])
def test_an_index_that_leads_to_a_folder(folder: Path, shard_name: str):
    places = shard(folder)
    write_index(folder, places | {QUERY: shard_name})
    refused(folder, ": no such file")


def test_a_shard_that_is_a_pipe(folder: Path):
    """Opening one would wait for ever."""
    shard(folder)
    os.mkfifo(folder / "part-2.safetensors")
    write_index(folder, {QUERY: "part-2.safetensors"})
    refused(folder, f"{folder / 'part-2.safetensors'}: no such file")


def test_an_index_that_places_what_is_not_there(folder: Path):
    places = shard(folder)
    write_index(folder, places | {"model.extra": "part-0.safetensors"})
    refused(folder, "places model.extra in part-0.safetensors, which does not hold it")


def test_an_index_that_does_not_place_what_is_there(folder: Path):
    places = shard(folder)
    del places[QUERY]
    write_index(folder, places)
    refused(folder, f"does not place {QUERY} in ")


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("f64", np.float64), ("f32", np.float32), ("f16", np.float16), ("bf16", ml_dtypes.bfloat16)],
)
def test_each_type_is_read(folder: Path, kind: str, stored: type):
    edit(folder, lambda tensors: tensors.update({QUERY: tensors[QUERY].astype(stored)}))
    tensor = HuggingFaceSource(folder).tensor("query", 1)
    assert (tensor.name, tensor.kind, tensor.shape) == (QUERY, kind, (16, 8))
    assert tensor.read().dtype == stored
    assert tensor.values().dtype == np.float32
    np.testing.assert_array_equal(tensor.values(), tensor.read().astype(np.float32))


def test_norms_stay_float32(folder: Path):
    model = load_model(folder, "f16").model
    assert model.attention_norm.dtype == model.final_norm.dtype == np.float32


def test_only_dense_weights_are_written(folder: Path, tmp_path: Path):
    packed = load_model(folder, "bf16").model  # as bits on a CPU
    with pytest.raises(UserError, match="only dense weights are written as safetensors, "):
        save_weights(tmp_path, packed, np.dtype(np.float16))


def test_unknown_weights(folder: Path):
    with pytest.raises(UserError, match="unknown weights 'int8'; known are f32, bf16, f16"):
        load_model(folder, "int8")


def test_no_folder(tmp_path: Path):
    nowhere = tmp_path / "nowhere"
    refused(
        nowhere, f"no model {str(nowhere)!r}; expected a Hugging Face folder, a converted model"
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file(folder: Path, name: str):
    (folder / name).unlink()
    refused(folder, f"{folder / name}: ")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"[" * 10**5])
def test_a_damaged_file(folder: Path, name: str, content: bytes):
    (folder / name).write_bytes(content)
    refused(folder, f"{folder / name} is damaged: ")


def test_json_that_is_no_object(folder: Path):
    (folder / "config.json").write_text("[1]")
    refused(folder, "config.json must hold a JSON object, got list")


def test_the_folders_name_is_the_models(folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    assert load_model(".").name == "tiny"
    shutil.copytree(folder, folder.parent / "other")
    assert load_model(folder.parent / "other").name == "other"
