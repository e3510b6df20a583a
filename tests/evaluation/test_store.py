"""Checkpoints: what was saved comes back, what is damaged does not, what differs is named."""

import json

import numpy as np
import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import store
from deltakv_jax.evaluation.results import Measured
from deltakv_jax.evaluation.store import Store

IDENTITY = {"--ctx": 512, "--kv": ["f16", "delta"], "--chunks": None}


def batch(seed: int) -> Measured:
    rng = np.random.default_rng(seed)
    return Measured(
        nll=rng.random((2, 3, 5)),
        kld=rng.random((2, 3, 5)),
        same_top=rng.random((2, 3, 5)) < 0.5,
        squares=rng.random((2, 3, 0, 3, 2)),
        seconds=rng.random(2),
    )


def same(got: Measured, want: Measured) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def saved(tmp_path):
    """A folder with two batches, and the messages of whoever opens it."""
    made = Store.open(tmp_path / "out.json.progress" / "a", IDENTITY, say=print)
    made.save(0, batch(0))
    made.save(3, batch(3))
    return tmp_path / "out.json.progress" / "a"


def reopened(folder, identity=IDENTITY) -> tuple[dict[int, Measured], list[str]]:
    said: list[str] = []
    return Store.open(folder, identity, say=said.append).batches(), said


def test_batches_come_back_bit_for_bit(saved):
    batches, said = reopened(saved)
    assert sorted(batches) == [0, 3]
    same(batches[0], batch(0))
    same(batches[3], batch(3))
    assert not said


def test_a_new_folder_holds_nothing(tmp_path):
    assert reopened(tmp_path / "new") == ({}, [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--ctx": 1024}, r"--ctx was 512, is 1024$"),
        ({"--kv": ["f16"]}, r"--kv was f16 delta, is f16$"),
        ({"--chunks": 3, "--ctx": 8}, r"--ctx was 512, is 8; --chunks was null, is 3$"),
    ],
)
def test_another_run_is_refused_with_what_differs(saved, change, says):
    with pytest.raises(UserError, match=says):
        reopened(saved, {**IDENTITY, **change})
    assert sorted(reopened(saved)[0]) == [0, 3]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "lost"])
def test_a_damaged_batch_is_moved_aside_and_the_others_stay(saved, damage):
    path = saved / "000000.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    {
        "flipped": lambda: path.write_bytes(data),
        "cut": lambda: path.write_bytes(data[:-100]),
        "empty": lambda: path.write_bytes(b""),
        "lost": path.unlink,
    }[damage]()
    batches, (said,) = reopened(saved)
    assert sorted(batches) == [3]
    assert "000000.npz is damaged" in said
    assert "measuring again" in said
    assert (saved / "000000.npz.damaged-1").exists() == (damage != "lost")
    assert not path.exists()
    assert reopened(saved)[1] == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"format": "deltakv_jax run", "version": 1}',
        b'{"format": "deltakv_jax run", "version": 1, "identity": {}, "batches": {"../x": "0"}}',
        b'{"format": "deltakv_jax run", "version": 2, "identity": {}, "batches": {}}',
    ],
)
def test_a_damaged_record_is_moved_aside(saved, content):
    (saved / "record.json").write_bytes(content)
    batches, (said,) = reopened(saved)
    assert batches == {}
    assert "record.json is damaged" in said
    assert (saved / "record.json.damaged-1").read_bytes() == content


def test_a_batch_that_was_not_recorded_does_not_count(saved):
    """Killed between the two writes."""
    record = json.loads((saved / "record.json").read_text())
    del record["batches"]["000003.npz"]
    (saved / "record.json").write_text(json.dumps(record))
    assert sorted(reopened(saved)[0]) == [0]


def test_an_interrupted_run_is_seen_until_it_is_discarded(saved):
    folder = saved.parent
    assert store.holds_run(folder)
    store.discard(folder)
    assert not store.holds_run(folder)
    assert not folder.exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    made = Store.open(tmp_path / "file" / "a", IDENTITY, say=print)
    with pytest.raises(UserError, match=r"checkpoints in .*Not a directory"):
        made.save(0, batch(0))


def test_nothing_is_made_before_the_first_batch(tmp_path):
    Store.open(tmp_path / "out.json.progress" / "run-1", IDENTITY, say=print)
    assert list(tmp_path.iterdir()) == []
