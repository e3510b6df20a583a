"""The harness itself: its files are valid, and it sees what it is there to see."""

import sys

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.weights.native import reading
from scripts import fuzz
from scripts.fuzzing import campaign, readers
from scripts.fuzzing.mutations import Random, mutate
from scripts.fuzzing.readers import READERS, loads, mutated
from scripts.fuzzing.seeds import LARGEST


@pytest.mark.parametrize("reader", READERS)
def test_seeds_are_small_and_load(reader, tmp_path):
    for model in READERS[reader]():
        assert set(model.mutated) <= set(model.files)
        assert max(map(len, model.files.values())) <= LARGEST
        assert loads(model, tmp_path)


def test_the_same_seed_gives_the_same_files():
    content, donors = bytes(range(256)) * 8, [b"donor" * 50]
    files = [mutate(content, donors, Random(f"a {case}")) for case in range(300)]
    assert files == [mutate(content, donors, Random(f"a {case}")) for case in range(300)]
    assert len(set(files)) > 250
    assert content not in files[:5]


def test_an_empty_file_can_be_mutated():
    for case in range(300):
        mutate(b"", [b""], Random(case))


def test_only_the_files_that_are_meant_are_mutated():
    models = READERS["index"]()
    changed = [mutated(models, Random(case)).files for case in range(100)]
    names = {name for files in changed for name in files if files[name] != models[0].files[name]}
    assert names == set(models[0].mutated)


def raising(error: BaseException):
    def load(path):
        raise error

    return load


def out_of_memory(path):
    with reading(path):
        raise MemoryError


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (raising(IndexError("list index out of range")), "IndexError: list index"),
        (raising(SystemExit(3)), "SystemExit: 3"),
        (raising(UserError("two\nlines")), "an error of more than one line"),
        (raising(UserError("red \x1b[31m")), "an error of more than one line"),
        (out_of_memory, "a large allocation, refused with"),
    ],
)
def test_a_fault_is_reported(load, says, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "read", load)
    result = one(tmp_path)
    assert result.fault
    assert says in result.fault
    assert (result.loaded, result.refused) == (0, 0)


def test_an_error_for_the_user_is_a_refusal(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "read", raising(UserError("a.gguf is damaged")))
    result = one(tmp_path)
    assert (result.loaded, result.refused, result.fault) == (0, 1, None)


def test_a_slow_file_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "LONGEST", 0.0)
    result = one(tmp_path)
    assert result.fault
    assert "it took" in result.fault


def one(folder):
    nothing = campaign.Result(0, 0, 0.0, None)
    return campaign._one(nothing, READERS["safetensors"]()[0], folder, case=0)


def test_a_process_that_ends_is_reported(tmp_path):
    result = campaign.run("a reader that is not there", 5, 0, tmp_path)
    assert result.fault == "the process ended with status 1 after 0 files or more"


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_the_command_prints_time_and_seed(capsys):
    assert fuzz.main(["--reader", "index", "--count", "30", "--seed", "5"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("index: 30 files, ")
    assert line.endswith("s in all, seed 5")
