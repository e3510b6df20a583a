import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from deltakv_jax.errors import UserError
from deltakv_jax.weights.gguf import open_gguf
from deltakv_jax.weights.gguf.file import open_file
from scripts.fuzzing.gguf_files import (
    model_metadata,
    random_tensors,
    sentencepiece_metadata,
)
from tests.weights.gguf.material import CONFIG, write_model

PARTS = 3


def part(folder: Path, number: int, count: int = PARTS) -> Path:
    return folder / f"m-{number:05}-of-{count:05}.gguf"


@pytest.fixture
def parts(tmp_path) -> Path:
    """A model in three parts, as the package's own writer splits it; the first one's path."""
    tensors = random_tensors(CONFIG, {})
    writer = GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=-(-len(tensors) // PARTS))
    pairs = {**model_metadata(CONFIG), **sentencepiece_metadata(CONFIG.vocab_size)}
    for key, value in pairs.items():
        kinds = {int: "uint32", float: "float32", str: "string", list: "array"}
        getattr(writer, f"add_{kinds[type(value)]}")(key, value)
    for name, (values, _) in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part(tmp_path, 1)


def test_parts_are_joined(parts, tmp_path):
    whole = open_file(write_model(tmp_path / "whole.gguf"))
    joined = open_file(parts)
    assert set(joined.tensors) == set(whole.tensors)
    assert {joined.path_of(name) for name in joined.tensors} == {
        part(tmp_path, number) for number in (1, 2, 3)
    }
    for name in whole.tensors:
        assert np.array_equal(joined.bytes_of(name), whole.bytes_of(name))
    source = open_gguf(parts)
    source.check_all_used()
    assert source.config == CONFIG


def test_the_name_is_that_of_the_file_without_part_and_ending(parts, tmp_path):
    assert open_file(parts).name == "m"
    assert open_file(write_model(tmp_path / "model.Q4_0.gguf")).name == "model.Q4_0"


def test_bytes_are_a_view_of_the_file(tmp_path):
    """Nothing is read before it is looked at."""
    got = open_file(write_model(tmp_path / "a.gguf")).bytes_of("output_norm.weight")
    assert not got.flags.owndata
    assert not got.flags.writeable


def test_another_part_than_the_first_is_refused(parts, tmp_path):
    with pytest.raises(UserError, match=r"00002-of-00003.gguf is part 2 of 3: give the first part"):
        open_file(part(tmp_path, 2))


def test_a_first_part_that_was_renamed_is_refused(parts, tmp_path):
    shutil.copy(parts, tmp_path / "renamed.gguf")
    with pytest.raises(
        UserError, match=r"renamed.gguf is part 1 of 3: .* NAME-00001-of-00003.gguf"
    ):
        open_file(tmp_path / "renamed.gguf")


def test_a_missing_part_is_named(parts, tmp_path):
    part(tmp_path, 3).unlink()
    with pytest.raises(UserError, match=r"m-00003-of-00003.gguf: no such file"):
        open_file(parts)


def test_a_damaged_part_is_named(parts, tmp_path):
    content = part(tmp_path, 2).read_bytes()
    part(tmp_path, 2).write_bytes(content[:-40])
    with pytest.raises(UserError, match=r"m-00002-of-00003.gguf is damaged: .* takes"):
        open_file(parts)


def test_a_part_in_anothers_place_is_named(parts, tmp_path):
    shutil.copy(part(tmp_path, 3), part(tmp_path, 2))
    with pytest.raises(UserError, match=r"00002-of-00003.gguf: split.no is 2, expected 1"):
        open_file(parts)


def test_a_part_of_another_model_is_named(parts, tmp_path):
    write_model(tmp_path / "other.gguf", metadata={"split.no": 1, "split.count": 4})
    shutil.copy(tmp_path / "other.gguf", part(tmp_path, 2))
    with pytest.raises(UserError, match=r"00002-of-00003.gguf: split.count is 4, expected 3"):
        open_file(parts)


def test_a_tensor_in_two_parts_is_named(parts, tmp_path):
    write_model(part(tmp_path, 2), metadata={"split.no": 1, "split.count": 3})
    with pytest.raises(UserError, match=r"00002-of-00003.gguf has token_embd.weight, as .*00001"):
        open_file(parts)


def test_a_wrong_total_is_named(tmp_path):
    path = write_model(tmp_path / "a.gguf", metadata={"split.tensors.count": 20})
    with pytest.raises(UserError, match=r"a.gguf: all parts have 21 tensors, expected 20"):
        open_file(path)


def test_a_number_of_parts_in_words_is_refused(tmp_path):
    path = write_model(tmp_path / "a.gguf", metadata={"split.count": "two"})
    with pytest.raises(UserError, match=r'a.gguf: split.count must be an integer, got "two"'):
        open_file(path)


def test_four_billion_parts_are_refused_at_once(tmp_path):
    path = write_model(
        tmp_path / "m-00001-of-99999.gguf", metadata={"split.no": 0, "split.count": 99999}
    )
    with pytest.raises(UserError, match=r"m-00002-of-99999.gguf: no such file"):
        open_file(path)
    path = write_model(tmp_path / "a.gguf", metadata={"split.no": 0, "split.count": 2**32 - 1})
    with pytest.raises(UserError, match=r"is part 1 of 4294967295: give the first part"):
        open_file(path)
