"""Texts by name and by file, and what is wrong with a bad one in one line."""

import hashlib
import sys
import types

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation.texts import load_text
from deltakv_jax.training import corpus


def test_a_file_keeps_its_bytes(tmp_path):
    data = "Grüße,\r\nzwei Zeilen\n".encode()
    (tmp_path / "a.txt").write_bytes(data)
    text = load_text(str(tmp_path / "a.txt"))
    assert text.name == "a.txt"
    assert text.content.encode() == data
    assert text.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("name", "made_of"), [("python-docs", corpus.python_docs), ("python-code", corpus.python_code)]
)
def test_a_named_text_is_held_out_from_training(name, made_of):
    text = load_text(name)
    assert text.name == name
    assert text.content == made_of().held_out
    assert text.sha256 == hashlib.sha256(text.content.encode()).hexdigest()


@pytest.fixture
def hub(monkeypatch):
    """In place of `datasets`: what `load_dataset` does is set by the test."""
    module = types.SimpleNamespace()
    config = types.SimpleNamespace(HF_DATASETS_CACHE="cache/datasets")
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setitem(sys.modules, "datasets.config", config)
    return module


def test_wikitext_2_is_the_file_that_the_dataset_was_made_of(shared, hub):
    data = (shared / "texts" / "wikitext-2-raw-test.txt").read_bytes()
    lines = data.decode().split("\n")[:-1]
    rows = [f"{line}\n" if line.strip() else "" for line in lines]

    def load_dataset(path, name, *, split):
        assert (path, name, split) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
        return {"text": rows}

    hub.load_dataset = load_dataset
    text = load_text("wikitext-2")
    assert text.content.encode() == data
    assert text.name == "wikitext-2"


def test_wikitext_2_without_a_network_says_where_it_looked(hub):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    hub.load_dataset = load_dataset
    with pytest.raises(
        UserError, match=r"cache \(cache/datasets\).*Couldn't reach.*file wiki"
    ) as got:
        load_text("wikitext-2")
    assert "\n" not in str(got.value)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("absent.txt", None, "No such file.*python-docs, python-code"),
        ("empty.txt", b"", "is empty"),
        ("latin.txt", b"caf\xe9 au lait", "no UTF-8: byte 0xe9 at offset 3"),
        (".", None, "Is a directory"),
    ],
)
def test_a_bad_text_is_named(tmp_path, name, data, says):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        load_text(str(tmp_path / name))
    assert "\n" not in str(caught.value)
