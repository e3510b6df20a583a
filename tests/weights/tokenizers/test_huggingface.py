import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from deltakv_jax.errors import UserError
from deltakv_jax.weights.tokenizers.huggingface import HuggingFaceVocabulary, parse
from deltakv_jax.weights.tokenizers.specials import split
from tests.weights.tokenizers.material import byte_level, ids_of

SPECIAL = ("<s>", "<|end|>")


def make(inner: tokenizers.Tokenizer) -> HuggingFaceVocabulary:
    return parse(inner.to_str().encode(), "tokenizer.json")


def metaspace() -> tokenizers.Tokenizer:
    """A space goes in front of the first piece of a text alone, wherever that is cut."""
    vocab = {letter: number for number, letter in enumerate("▁abcs<>|end")}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.add_special_tokens(list(SPECIAL))
    return inner


@pytest.mark.parametrize("inner", [byte_level(SPECIAL), metaspace()], ids=["bytes", "metaspace"])
def test_special_tokens_in_text_are_plain_characters(inner: tokenizers.Tokenizer):
    vocabulary = make(inner)
    ids = vocabulary.encode(["a<s>b<|end|>"])
    assert not set(ids) & set(vocabulary.special.values())
    assert len(ids) >= len("a<s>b<|end|>")


@given(
    st.sampled_from([byte_level(SPECIAL), byte_level(SPECIAL, lstrip=True), metaspace()]),
    st.lists(st.sampled_from([*SPECIAL, "a", " ", "b c"])).map("".join),
)
def test_parts_encode_as_the_library_encodes_the_whole(inner: tokenizers.Tokenizer, text: str):
    """Whatever its rules are for what stands beside a special token."""
    vocabulary = make(inner)
    want = inner.encode(text, add_special_tokens=False).ids
    assert vocabulary.encode(split(text, vocabulary.special)) == want


def test_a_special_token_and_its_text_side_by_side():
    vocabulary = make(byte_level(SPECIAL))
    number = vocabulary.special["<s>"]
    assert vocabulary.encode([number, "<s>", number]) == [
        number,
        *vocabulary.encode(["<s>"]),
        number,
    ]


def test_tokens_of_the_user_are_found_in_any_text():
    inner = byte_level(SPECIAL)
    inner.add_tokens(["<tool>"])
    vocabulary = make(inner)
    assert vocabulary.id_of("<tool>") in ids_of(vocabulary, "a<tool>b")
    assert vocabulary.special == {"<s>": 256, "<|end|>": 257}


def test_ids_with_gaps():
    """Names that are added to a copy must not be taken for the tokens behind a gap."""
    inner = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 5, "c": 3}, merges=[]))
    inner.add_special_tokens(["a"])
    assert make(inner).encode([0, "bcb", 0]) == [0, 5, 3, 5, 0]


def test_a_file_may_not_cut_or_fill_texts():
    inner = byte_level()
    inner.enable_truncation(2)
    inner.enable_padding(length=100)
    assert len(make(inner).encode(["abcd"])) == 4


def test_the_token_that_the_file_puts_in_front():
    inner = byte_level(SPECIAL)
    assert make(inner).bos_id is None
    inner.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", 257)]
    )
    assert make(inner).bos_id is None
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A <|end|>", special_tokens=[("<s>", 256), ("<|end|>", 257)]
    )
    assert make(inner).bos_id == 256


def test_special_and_unknown_ids_have_no_text():
    vocabulary = make(byte_level(SPECIAL))
    vocabulary.encode([256, "a"])  # what this adds to a copy is unknown to decoding
    assert vocabulary.decode([*ids_of(vocabulary, "a"), 256, 258, 9999]) == "a"


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 10**5, b'{"model": 1}'])
def test_a_damaged_file(data: bytes):
    with pytest.raises(UserError, match=r"^tokenizer\.json is damaged: .+$"):
        parse(data, "tokenizer.json")
