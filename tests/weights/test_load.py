"""Which reader opens what is named."""

from pathlib import Path

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.weights.gguf.source import GGUFSource
from deltakv_jax.weights.huggingface import HuggingFaceSource
from deltakv_jax.weights.load import open_source


def test_a_folder_is_hugging_faces(folder: Path):
    for model in (folder, str(folder)):
        source = open_source(model)
        assert isinstance(source, HuggingFaceSource)
        assert source.name == "tiny"


def test_a_folder_may_be_named_like_a_file(folder: Path):
    renamed = folder.rename(folder.parent / "tiny.gguf")
    assert open_source(renamed).name == "tiny.gguf"


def test_a_gguf_file_is_known_by_its_ending(shared: Path):
    source = open_source(shared / "models" / "tiny1m-f32.gguf")
    assert isinstance(source, GGUFSource)
    assert source.name == "tiny1m-f32"


@pytest.mark.parametrize("name", ["nowhere", "nowhere.gguf", "config.json"])
def test_anything_else_is_no_model(folder: Path, monkeypatch, name: str):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=f"no model '{name}'; expected a Hugging Face folder"):
        open_source(name)
