"""Real GGUF files: against the gguf package's weights, llama.cpp's figures, and the same folder."""

import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file

from deltakv_jax.attention.plain import attend_plain
from deltakv_jax.codec import parse_spec
from deltakv_jax.evaluation import runner, texts
from deltakv_jax.model import Llama
from deltakv_jax.weights import LoadedModel, load_model
from deltakv_jax.weights import huggingface as folders
from deltakv_jax.weights.configuration import fields_from_config
from deltakv_jax.weights.gguf.source import NAMES
from deltakv_jax.weights.roles import layer_shapes, model_shapes

FILES = ("f32", "Q8_0", "Q4_0", "Q4_K_M")


@jax.jit
def logits(model: Llama, tokens: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model.hidden(tokens, positions, None, attend=attend_plain)
    return model.logits(hidden)


def story(shared: Path) -> texts.Text:
    return texts.load_text(str(shared / "texts" / "tinystories.txt"))


def some_tokens(shared: Path, loaded: LoadedModel) -> jax.Array:
    return jnp.array([loaded.tokenizer.encode(story(shared).content[:400])[:96]])


def by_the_package(path: Path, loaded: LoadedModel, folder: Path, tokenizer: Path) -> Llama:
    """The model of a file's values as the gguf package gives them, through a folder in float32."""
    config, tensors = loaded.config, {}
    values = {one.name: dequantize(one.data, one.tensor_type) for one in GGUFReader(path).tensors}
    for role in model_shapes(config):
        tensors[folders.NAMES[role]] = values[NAMES[role]]
    for role in layer_shapes(config):
        for layer in range(config.layers):
            matrix = values[NAMES[role].format(layer)]
            if role in ("query", "key"):  # the pairs of a head apart, to its two halves
                heads = matrix.reshape(-1, config.head_dim, config.width)
                matrix = np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1)
                matrix = matrix.reshape(-1, config.width)
            tensors[folders.NAMES[role].format(layer)] = matrix
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fields_from_config(config)))
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return load_model(folder, "f32").model


@pytest.mark.parametrize("name", FILES)
def test_logits_are_those_of_the_packages_weights(name, shared, tmp_path):
    """Unpacked and packed alike, within the rounding of float32 sums in another order."""
    path = shared / "models" / f"random256-{name}.gguf"
    unpacked, packed = load_model(path, "f32"), load_model(path, "native")
    tokenizer = shared / "models" / "tiny1m" / "tokenizer.json"
    want_model = by_the_package(path, unpacked, tmp_path / "folder", tokenizer)
    chex.assert_trees_all_equal(unpacked.model, want_model)
    tokens = some_tokens(shared, unpacked)
    want = logits(want_model, tokens)
    spread = jnp.std(want, axis=-1, keepdims=True)
    assert jnp.max(jnp.abs(logits(packed.model, tokens) - want) / spread) < 5e-5


def perplexity(loaded: LoadedModel, shared: Path) -> float:
    """As llama.cpp's figures were made: 10 chunks of 256 tokens, a cache in float32."""
    settings = runner.Settings(specs=(parse_spec("f32"),), ctx=256, chunks=10, sequential=False)
    text = story(shared)
    cut = runner.cut(loaded, text, settings)
    (row,) = runner.evaluate(loaded, text, cut, settings).rows
    return row.ppl


def golden(shared: Path, name: str) -> float:
    table = json.loads((shared / "golden" / "llama_cpp.json").read_text())["perplexity"]
    (row,) = [row for row in table if row["model"] == f"models/random256-{name}.gguf"]
    return row["ppl"]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("f32", "f32"),
        ("Q8_0", "native"),
        ("Q4_K_M", "native"),
        # whose logits are those of the packed ones, as the test above says
        pytest.param("Q8_0", "f32", marks=pytest.mark.slow),
        pytest.param("Q4_K_M", "f32", marks=pytest.mark.slow),
    ],
)
def test_perplexity_is_llama_cpps(name, weights, shared):
    loaded = load_model(shared / "models" / f"random256-{name}.gguf", weights)
    assert perplexity(loaded, shared) == pytest.approx(golden(shared, name), rel=2e-3)


def test_the_perplexity_of_other_weights_is_seen(shared):
    """Those of the float32 file are not those of Q4_K_M."""
    loaded = load_model(shared / "models" / "random256-f32.gguf", "f32")
    assert perplexity(loaded, shared) != pytest.approx(golden(shared, "Q4_K_M"), rel=1e-2)


def test_a_file_and_its_folder_are_the_same_model(shared):
    """The same tokens, and bit for bit the same weights and logits."""
    file = load_model(shared / "models" / "tiny1m-f32.gguf", "f32")
    folder = load_model(shared / "models" / "tiny1m", "f32")
    assert file.config == folder.config
    chex.assert_trees_all_equal(file.model, folder.model)
    for part in (story(shared).content[:100_000], "Grüße\n\n  aus 東京 🙂", "", " ", "a  b"):
        ids = folder.tokenizer.encode(part)
        assert file.tokenizer.encode(part) == ids
        assert file.tokenizer.decode(ids) == folder.tokenizer.decode(ids)
    assert (file.tokenizer.bos_id, file.tokenizer.eos_ids) == (
        folder.tokenizer.bos_id,
        folder.tokenizer.eos_ids,
    )
    tokens = some_tokens(shared, folder)
    assert np.array_equal(logits(file.model, tokens), logits(folder.model, tokens))
