"""Texts by name and by file, and what is wrong with a bad one in one line."""

import hashlib

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation.texts import NAMED, load_text


def test_a_file_keeps_its_bytes(tmp_path):
    data = "Grüße,\r\nzwei Zeilen\n".encode()
    (tmp_path / "a.txt").write_bytes(data)
    text = load_text(str(tmp_path / "a.txt"))
    assert text.name == "a.txt"
    assert text.content.encode() == data
    assert text.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_named_text_is_held_out_from_training(name):
    text = load_text(name)
    assert text.name == name
    assert text.content == NAMED[name]().held_out
    assert text.sha256 == hashlib.sha256(text.content.encode()).hexdigest()


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
