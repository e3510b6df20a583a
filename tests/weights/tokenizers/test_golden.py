"""Real vocabularies, id for id as llama.cpp has them, from every kind of file."""

import functools
import json
from pathlib import Path

import gguf
import pytest
from tokenizers import Tokenizer as Library

from deltakv_jax.weights import Tokenizer
from deltakv_jax.weights.gguf.walk import walk
from deltakv_jax.weights.tokenizers import tiktoken
from deltakv_jax.weights.tokenizers.bytelevel import to_characters
from deltakv_jax.weights.tokenizers.gguf import tokenizer_from_gguf

LLAMA_2, LLAMA_3 = "llama2/ggml-vocab-llama-spm.gguf", "llama3/ggml-vocab-llama-bpe.gguf"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def from_gguf(path: Path) -> Tokenizer:
    return tokenizer_from_gguf(walk(path).metadata, source=str(path), limit=1 << 20)


def cases(shared: Path, name: str) -> list[tuple[str, list[int]]]:
    files = [shared / "tokenizers" / f"{name}.{ending}" for ending in ("inp", "out")]
    texts, ids = (file.read_bytes().decode() for file in files)
    *texts, last = texts.split("\n__ggml_vocab_test__\n")
    assert last == ""
    rows = [[int(one) for one in line.split()] for line in ids.splitlines()]
    return list(zip(texts, rows, strict=True))


def check(tokenizer: Tokenizer, golden: list[tuple[str, list[int]]]) -> None:
    assert len(golden) == 46
    for text, ids in golden:
        assert tokenizer.encode(text, bos=False) == ids
        assert tokenizer.decode(ids) == text
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == text


def test_llama_2_from_its_model(shared: Path):
    check(Tokenizer.load(shared / "tokenizers" / "llama2"), cases(shared, LLAMA_2))


def test_llama_2_from_its_gguf(shared: Path):
    check(from_gguf(shared / "tokenizers" / LLAMA_2), cases(shared, LLAMA_2))


def test_llama_3_from_its_ranks(shared: Path):
    tokenizer = Tokenizer.load(shared / "tokenizers" / "llama3")
    check(tokenizer, cases(shared, LLAMA_3))
    assert tokenizer.bos_id == 128000
    assert tokenizer.eos_ids == {128001, 128008, 128009}
    assert tokenizer.vocab_size == 128256
    assert tokenizer.encode("<|eot_id|>", special=True) == [128000, 128009]
    assert tokenizer.encode("<|eot_id|>") == [128000, 27, 91, 68, 354, 851, 91, 29]


@pytest.fixture
def llama_3(shared: Path) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """The tokens, special tokens and merges of Llama 3, from its ranks."""
    return llama_3_of(shared / "tokenizers" / "llama3" / "llama3_vocab.tiktoken")


@functools.cache
def llama_3_of(path: Path) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    ranks = tiktoken.parse(path.read_bytes(), str(path))
    tokens = [to_characters(token) for token in ranks]
    return tokens, tiktoken.special_tokens(), tiktoken.merges(ranks)


def test_llama_3_from_a_tokenizer_json(shared: Path, tmp_path: Path, llama_3):
    """Laid out as Meta's own is."""
    tokens, special, merges = llama_3
    vocab = {token: number for number, token in enumerate(tokens)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": len(tokens) + number, "content": name, "special": True, **flags}
        for number, name in enumerate(special)
    ]
    cut = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    layout = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [cut, {"type": "ByteLevel"} | level],
        },
        "decoder": {"type": "ByteLevel", **level},
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": merges},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout))
    config = {"bos_token": special[0], "eos_token": special[9]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    check(tokenizer, cases(shared, LLAMA_3))
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (128000, 128256)


def test_llama_3_from_a_gguf(shared: Path, tmp_path: Path, llama_3):
    tokens, special, merges = llama_3
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*tokens, *special])
    writer.add_token_types([1] * len(tokens) + [3] * len(special))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(128000)
    writer.add_eos_token_id(128009)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = from_gguf(tmp_path / "vocabulary.gguf")
    check(tokenizer, cases(shared, LLAMA_3))
    assert tokenizer.bos_id == 128000
    assert tokenizer.eos_ids == {128001, 128008, 128009}


def test_one_model_from_two_kinds_of_file(shared: Path):
    folder = Tokenizer.load(shared / "models" / "tiny1m")
    file = from_gguf(shared / "models" / "tiny1m-f32.gguf")
    text = (shared / "texts" / "tinystories.txt").read_text()
    assert file.encode(text) == folder.encode(text)
    assert (file.bos_id, file.eos_ids) == (folder.bos_id, folder.eos_ids)


@pytest.mark.parametrize("name", ["tiny1m", "stories260K"])
def test_ids_of_a_text_without_special_tokens_are_the_librarys(shared: Path, name: str):
    folder = shared / "models" / name
    library = Library.from_file(str(folder / "tokenizer.json"))
    text = (shared / "texts" / "tinystories.txt").read_text()
    want = library.encode(text, add_special_tokens=False).ids
    assert Tokenizer.load(folder).encode(text, bos=False) == want
