"""Files that are whole or not there, and places that are checked before a run."""

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import files


def test_a_file_is_replaced_whole(tmp_path):
    target = tmp_path / "out.json"
    target.write_text("old")
    files.write_atomically(target, b"new", "--json")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "out.json"
    target.write_text("old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(UserError, match="No space left"):
        files.write_atomically(target, b"new", "--json")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize("bad", ["", "missing/out.json"])
def test_a_place_that_cannot_be_written_is_found_before_the_run(tmp_path, bad):
    with pytest.raises(UserError, match="--json"):
        files.check_writable(tmp_path / bad, "--json")
