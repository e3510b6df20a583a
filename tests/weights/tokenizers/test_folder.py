import json
from pathlib import Path

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.weights import Tokenizer
from tests.weights.tokenizers.material import PIECES, byte_level
from tests.weights.tokenizers.test_sentencepiece import written

USER = [{"role": "user", "content": "a"}]


def write(folder: Path, name: str, **fields) -> None:
    (folder / name).write_text(json.dumps(fields))


@pytest.fixture
def pieces_folder(tmp_path: Path) -> Path:
    """A folder with a SentencePiece model only."""
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "tokenizer.model").write_bytes(written())
    return tmp_path / "pieces"


def test_a_sentencepiece_model(pieces_folder: Path):
    tokenizer = Tokenizer.load(pieces_folder)
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {2}
    assert tokenizer.decode(tokenizer.encode("ab é")) == "ab é"


def test_a_tokenizer_json_comes_first(pieces_folder: Path):
    byte_level().save(str(pieces_folder / "tokenizer.json"))
    assert Tokenizer.load(pieces_folder).vocab_size == 256


def test_a_folder_without_a_tokenizer(tmp_path: Path):
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file, nor a tokenizer\.model"):
        Tokenizer.load(tmp_path)


def test_ranks_are_told_from_a_sentencepiece_model(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")
    with pytest.raises(UserError, match=r"tokenizer\.model has 1 ranks; only Llama 3's"):
        Tokenizer.load(tmp_path)


def test_a_file_too_large_for_a_tokenizer(tmp_path: Path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="has 1099511627776 bytes, too many for a tokenizer"):
        Tokenizer.load(tmp_path)


def test_bos_may_be_named_by_an_object(folder: Path):
    write(folder, "tokenizer_config.json", bos_token={"content": "<eot>", "special": True})
    assert Tokenizer.load(folder).bos_id == 2


def test_bos_comes_from_the_configs_where_no_token_is_named(folder: Path):
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.load(folder).bos_id is None
    write(folder, "config.json", bos_token_id=1)
    assert Tokenizer.load(folder).bos_id == 1
    write(folder, "generation_config.json", bos_token_id=2)
    assert Tokenizer.load(folder).bos_id == 2


def test_a_model_may_take_no_bos(folder: Path):
    write(folder, "tokenizer_config.json", bos_token="<bos>", add_bos_token=False)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.bos_id is None
    assert len(tokenizer.encode("ab")) == 2


@pytest.mark.parametrize(
    ("class_name", "bos_id"),
    [("GPT2Tokenizer", None), ("PreTrainedTokenizerFast", None), ("LlamaTokenizerFast", 0)],
)
def test_what_the_class_of_a_tokenizer_puts_in_front(
    folder: Path, class_name: str, bos_id: int | None
):
    """SmolLM2 names a BOS that it never puts in front of a text."""
    write(folder, "tokenizer_config.json", bos_token="<bos>", tokenizer_class=class_name)
    assert Tokenizer.load(folder).bos_id == bos_id


def test_a_token_that_is_no_unicode(folder: Path):
    write(folder, "tokenizer_config.json", bos_token="\ud800")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is damaged: "):
        Tokenizer.load(folder)


def test_eos_is_whatever_any_file_names(folder: Path):
    assert Tokenizer.load(folder).eos_ids == {1}
    write(folder, "generation_config.json", eos_token_id=[2, 7])
    assert Tokenizer.load(folder).eos_ids == {1, 2, 7}


def test_ids_that_are_no_integers(folder: Path):
    write(folder, "generation_config.json", eos_token_id="</s>")
    with pytest.raises(UserError, match=r'eos_token_id must hold integers, got "</s>"'):
        Tokenizer.load(folder)


def test_tokens_behind_those_of_a_sentencepiece_model(pieces_folder: Path):
    first = len(PIECES)
    added = {"<|im_end|>": True, "<think>": False}
    decoder = {first + i: {"content": k, "special": v} for i, (k, v) in enumerate(added.items())}
    known = {"1": {"content": "<s>", "special": True}}
    write(pieces_folder, "tokenizer_config.json", added_tokens_decoder=known | decoder)
    write(pieces_folder, "added_tokens.json", **{"<|im_end|>": first})
    tokenizer = Tokenizer.load(pieces_folder)
    assert first in tokenizer.eos_ids
    assert tokenizer.encode("<|im_end|>", special=True) == [1, first]
    assert first not in tokenizer.encode("<|im_end|>")
    assert first + 1 in tokenizer.encode("a<think>")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("added_tokens.json", {"<pad>": len(PIECES)}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9999": {"content": "x"}}}),
    ],
)
def test_added_tokens_that_cannot_be_placed(pieces_folder: Path, name: str, fields: dict):
    write(pieces_folder, name, **fields)
    with pytest.raises(UserError, match=rf"{name} adds token \d+ to {len(PIECES)}; needs a token"):
        Tokenizer.load(pieces_folder)


def test_a_template_in_the_config(folder: Path):
    write(folder, "tokenizer_config.json", eos_token="<eot>", chat_template="{{ eos_token }}")
    assert Tokenizer.load(folder).encode_chat(USER) == [2]


def test_of_several_templates_the_default_one(folder: Path):
    several = [{"name": "rag", "template": "a"}, {"name": "default", "template": "<eot>"}]
    write(folder, "tokenizer_config.json", chat_template=several)
    assert Tokenizer.load(folder).encode_chat(USER) == [2]
    write(folder, "tokenizer_config.json", chat_template=several[:1])
    with pytest.raises(UserError, match=r"chat_template has no default, only \['rag'\]"):
        Tokenizer.load(folder)


def test_a_template_in_a_file_of_its_own(folder: Path):
    write(folder, "tokenizer_config.json", chat_template="a")
    (folder / "chat_template.jinja").write_text("<eot>")
    assert Tokenizer.load(folder).encode_chat(USER) == [2]
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja is not UTF-8 text: byte 0"):
        Tokenizer.load(folder)


def test_a_template_that_is_no_text(folder: Path):
    write(folder, "tokenizer_config.json", chat_template=5)
    with pytest.raises(UserError, match="chat_template must be a string, got 5"):
        Tokenizer.load(folder)
