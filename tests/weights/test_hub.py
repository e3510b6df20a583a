"""Offline, in a cache laid out as huggingface_hub does it."""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from deltakv_jax.errors import UserError
from deltakv_jax.weights import hub, load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def snapshot(cache: Path, folder: Path) -> Path:
    """The folder of `me/tiny` at its branch main."""
    place = cache / "models--me--tiny"
    shutil.copytree(folder, place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)
    return place / "snapshots" / COMMIT


@pytest.mark.parametrize("name", ["hf:me/tiny", "hf:me/tiny@main", f"hf:me/tiny@{COMMIT}"])
def test_a_cached_model_loads_offline(snapshot: Path, name: str):
    assert hub.fetch(name) == snapshot
    assert load_model(name).name == "me/tiny"


def test_only_the_prefix_asks_for_the_hub(snapshot: Path, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda name: pytest.fail("asked for the hub"))
    with pytest.raises(UserError, match=r"no model 'me/tiny'; expected .* or hf:OWNER/NAME"):
        load_model("me/tiny")


def test_a_folder_has_no_precedence_over_the_prefix(cache: Path, folder: Path, monkeypatch):
    (folder.parent / "hf:me").mkdir()
    folder.rename(folder.parent / "hf:me" / "tiny")
    monkeypatch.chdir(folder.parent)
    refused("hf:me/tiny", "does not hold all files")
    assert load_model("./hf:me/tiny").name == "tiny"


@pytest.mark.parametrize("revision", ["main", "v2"])
def test_offline_it_says_what_is_missing_and_where_it_looked(cache: Path, revision: str):
    name = "hf:me/other" if revision == "main" else f"hf:me/other@{revision}"
    place = cache / "models--me--other"
    refused(name, f"{name}: {place} does not hold all files of {revision}; ")
    refused(name, "HF_HUB_OFFLINE")


def test_an_unknown_revision_offline(snapshot: Path):
    refused("hf:me/tiny@v2", f"{snapshot.parents[1]} does not hold all files of v2; ")


def test_a_cut_short_download_is_named(snapshot: Path):
    (snapshot / "model.safetensors").unlink()
    refused("hf:me/tiny", f"{snapshot} has no weights: expected model.safetensors or")


def refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["hf:", "hf:tiny", "hf:me/tiny/x", "hf:../tiny", "hf:me/tiny@", "hf:me/ti ny", "hf:/a"]
)
def test_a_name_that_is_none(cache: Path, name: str):
    refused(name, f"{name!r} is no model of the hub; expected hf:OWNER/NAME[@REVISION]")


def test_only_what_is_read_is_fetched(monkeypatch, tmp_path: Path):
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, **options: asked.update(options, repo=repo) or str(tmp_path),
    )
    assert hub.fetch("hf:me/tiny@v1") == tmp_path
    assert (asked["repo"], asked["revision"]) == ("me/tiny", "v1")
    files = """config.json model.safetensors model-00001-of-00002.safetensors tokenizer.json
    model.safetensors.index.json tokenizer.model tokenizer_config.json consolidated.safetensors
    original/model.safetensors pytorch_model.bin README.md onnx/config.json"""
    taken = list(
        huggingface_hub.utils.filter_repo_objects(
            files.split(), allow_patterns=asked["allow_patterns"]
        )
    )
    assert taken == files.split()[:7]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "hf:me/tiny@v1: gated: "),
        (errors.RepositoryNotFoundError, "hf:me/tiny@v1: the hub has no such model"),
        (errors.RevisionNotFoundError, "hf:me/tiny@v1: me/tiny has no revision 'v1'"),
        (errors.LocalEntryNotFoundError, "models--me--tiny does not hold all files of v1; "),
        (json.JSONDecodeError, "hf:me/tiny@v1: JSONDecodeError"),
    ],
)
def test_what_the_library_raises_is_one_line(monkeypatch, kind: type[Exception], message: str):
    def broken(*args, **options):
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    refused("hf:me/tiny@v1", message)
