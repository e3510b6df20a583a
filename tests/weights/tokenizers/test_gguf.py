from collections.abc import Mapping
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from deltakv_jax.errors import UserError
from deltakv_jax.weights import Tokenizer
from deltakv_jax.weights.tokenizers.gguf import tokenizer_from_gguf
from tests.weights.tokenizers.material import PIECES, metadata, pieces

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("a", "b"), ("Ġ", "ab"), ("1", "2"), ("12", "3"), ("Ã", "©"), ("Ċ", "Ċ")]
TOKENS = ["<|endoftext|>", *ALPHABET, *map("".join, MERGES), "<|eot_id|>", "<tool>"]
KINDS = [3, *[1] * (len(TOKENS) - 3), 3, 4]
BYTE_LEVEL = {
    "model": "gpt2",
    "pre": "llama-bpe",
    "tokens": TOKENS,
    "token_type": KINDS,
    "merges": [" ".join(pair) for pair in MERGES],
    "scores": None,
    "bos_token_id": 0,
}
digits = pre_tokenizers.Digits(individual_digits=True)
gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
PRE_TOKENIZERS = {"gpt-2": gpt2, "smollm": pre_tokenizers.Sequence([digits, gpt2])}
texts = st.text(st.sampled_from("abe\u030112 \n\té'sS!½ſ²")) | st.text()


def load(limit: int, changes: Mapping[str, Any]) -> Tokenizer:
    return tokenizer_from_gguf(metadata(**changes), source="m.gguf", limit=limit)


def load_bytes(limit: int = len(TOKENS), **changes: Any) -> Tokenizer:
    return load(limit, BYTE_LEVEL | changes)


FILE, MODEL = load(len(PIECES), {}), pieces()


def reference(pre: str) -> tokenizers.Tokenizer:
    """The tokenizer.json of a model whose text is cut so."""
    vocab = {token: number for number, token in enumerate(TOKENS)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    inner.pre_tokenizer = PRE_TOKENIZERS[pre]
    inner.decoder = decoders.ByteLevel()
    return inner


REFERENCES = {pre: reference(pre) for pre in PRE_TOKENIZERS}
FILES = {pre: load_bytes(pre=pre) for pre in (*PRE_TOKENIZERS, "qwen2")}


@given(st.text(st.sampled_from("abc é▁\n")) | st.text())
def test_pieces_are_those_of_the_model_they_were_made_from(text: str):
    assert FILE.encode(text, bos=False) == MODEL.encode([text])
    assert (FILE.bos_id, FILE.eos_ids) == (1, {2})


def test_the_space_in_front_of_a_text():
    ids = load(len(PIECES), {"add_space_prefix": False}).encode("ab", bos=False)
    assert [PIECES[number].text for number in ids] == ["ab"]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@given(text=texts)
def test_byte_level_pieces_are_those_of_a_tokenizer_json(pre: str, text: str):
    want = REFERENCES[pre].encode(text).ids
    assert FILES[pre].encode(text, bos=False) == want


@given(texts)
def test_qwens_text_is_composed_and_its_digits_stand_alone(text: str):
    tokenizer = FILES["qwen2"]
    composed = normalizers.NFC().normalize_str(text)
    assert tokenizer.decode(tokenizer.encode(text)) == composed
    assert tokenizer.encode("123") == [TOKENS.index(digit) for digit in "123"]


def test_llama_3_takes_digits_by_threes_and_whole_tokens():
    tokenizer = load_bytes()
    assert tokenizer.encode("1231", bos=False) == [TOKENS.index("123"), TOKENS.index("1")]
    backwards = [" ".join(pair) for pair in reversed(MERGES)]
    kept = load_bytes(merges=backwards).encode(" ab", bos=False)
    assert kept == [TOKENS.index("Ġab")]


def test_kinds_of_tokens():
    tokenizer = load_bytes()
    assert tokenizer.encode("<tool>", bos=False) == [TOKENS.index("<tool>")]
    assert len(tokenizer.encode("<|eot_id|>", bos=False)) > 1
    assert tokenizer.encode("<|eot_id|>", bos=False, special=True) == [TOKENS.index("<|eot_id|>")]
    assert tokenizer.decode([0, TOKENS.index("<tool>"), TOKENS.index("<|eot_id|>")]) == "<tool>"


@pytest.mark.parametrize(
    ("changes", "bos_id"),
    [
        ({}, 0),
        ({"add_bos_token": False}, None),
        ({"pre": "qwen2"}, None),
        ({"pre": "qwen2", "add_bos_token": True}, 0),
        ({"bos_token_id": None}, None),
    ],
)
def test_bos(changes: dict, bos_id: int | None):
    assert load_bytes(**changes).bos_id == bos_id


def test_all_that_ends_a_text_or_a_turn():
    tokenizer = load_bytes(eos_token_id=5, eot_token_id=6, eom_token_id=7)
    assert tokenizer.eos_ids == {5, 6, 7, 0, TOKENS.index("<|eot_id|>")}


def test_the_chat_template():
    values = metadata(**BYTE_LEVEL, eos_token_id=len(TOKENS) - 2)
    values["tokenizer.chat_template"] = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    tokenizer = tokenizer_from_gguf(values, source="m.gguf", limit=len(TOKENS))
    ids = tokenizer.encode_chat([{"role": "user", "content": "ab"}])
    assert ids == [0, TOKENS.index("ab"), len(TOKENS) - 2]


def test_a_token_beyond_the_models_vocabulary():
    with pytest.raises(UserError, match="but the model has 10 tokens"):
        load_bytes(10).encode("z")


@pytest.mark.parametrize(
    ("says", "changes"),
    [
        ("tokenizer.ggml.model must be a string, it is missing", {"model": None}),
        ("tokenizer.ggml.model is 'bert'; supported are llama, gpt2", {"model": "bert"}),
        ("tokenizer.ggml.tokens must be an array of str", {"tokens": None}),
        ("tokenizer.ggml.tokens must be an array of str", {"tokens": [1]}),
        ("tokenizer.ggml.tokens must be an array of str", {"tokens": "a"}),
        ("tokenizer.ggml.scores must be an array of float", {"scores": [1] * len(PIECES)}),
        (f"tokenizer.ggml.scores has 1 values for {len(PIECES)} tokens", {"scores": [1.0]}),
        ("m.gguf is damaged: ", {"scores": [float("nan")] * len(PIECES)}),
        ("tokenizer.ggml.token_type must be an array of int", {"token_type": None}),
        ("token_type: 9 is not a valid Kind", {"token_type": [9] * len(PIECES)}),
        (f"bos_token_id is 9999, of {len(PIECES)} tokens", {"bos_token_id": 9999}),
        (f"eos_token_id is -1, of {len(PIECES)} tokens", {"eos_token_id": -1}),
        ("bos_token_id must be an integer", {"bos_token_id": "1"}),
        ("add_bos_token must be true or false", {"add_bos_token": 1}),
        ("m.gguf is damaged: ", {"tokens": ["a"] * len(PIECES)}),
        ("tokenizer.ggml.pre must be a string, it is missing", BYTE_LEVEL | {"pre": None}),
        ("tokenizer.ggml.pre is 'tekken'; supported are gpt-2,", BYTE_LEVEL | {"pre": "tekken"}),
        ("tokens has a token twice", BYTE_LEVEL | {"tokens": ["a", *TOKENS[:-1]]}),
        ("merges: 'ab' is no pair of tokens", BYTE_LEVEL | {"merges": ["ab"]}),
        ("m.gguf is damaged: ", BYTE_LEVEL | {"merges": ["a zzz"]}),
    ],
)
def test_metadata_that_is_damaged_or_not_supported(says: str, changes: dict):
    with pytest.raises(UserError) as caught:
        load(len(PIECES), changes)
    assert str(caught.value).startswith("m.gguf")
    assert says in str(caught.value)
