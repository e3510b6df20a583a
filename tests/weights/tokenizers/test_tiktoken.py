import base64

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.weights.tokenizers import tiktoken

RANKS = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"bc": 257, b"abc": 258}


def written(ranks: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items())


def test_ranks_are_read():
    assert tiktoken.parse(written(RANKS), "m") == RANKS
    assert tiktoken.is_ranks(written(RANKS))
    assert not tiktoken.is_ranks(b"\x0a\x0e\x0a\x05<unk>")


def test_every_pair_that_makes_a_token_is_a_merge():
    assert tiktoken.merges(RANKS) == [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]


def test_text_is_cut_by_the_ranks_and_a_whole_token_is_taken_as_it_is():
    vocabulary = tiktoken.vocabulary(RANKS | {b"cab": 259}, "m")
    assert vocabulary.encode(["abc"]) == [258]
    assert vocabulary.encode(["cab"]) == [259]
    assert vocabulary.encode(["abab"]) == [256, 256]
    assert vocabulary.decode([258, 0xC3, 0xA9, 260]) == "abcé"


def test_the_special_tokens_of_llama_3():
    """Ids as in the tokenizer.json of Llama 3.1."""
    names = tiktoken.special_tokens()
    assert len(set(names)) == 256
    assert names[:12] == [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|reserved_special_token_3|>",
    ]
    assert names[-1] == "<|reserved_special_token_247|>"
    vocabulary = tiktoken.vocabulary(RANKS, "m")
    assert [vocabulary.special[name] for name in names] == list(range(259, 515))
    assert vocabulary.bos_id == 259


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (written(RANKS) + b"YWI= x\n", "m is damaged: line 260 is no token and rank"),
        (written(RANKS) + b"?? 259\n", "m is damaged: line 260 is no token and rank"),
        (written(RANKS) + b"YQ\n", "m is damaged: line 260 is no token and rank"),
        (written(RANKS) + b"YWI= 259\n", "m is damaged: line 260 is not the token 259"),
        (written(RANKS) + b"Y2E= 300\n", "m is damaged: line 260 is not the token 259"),
        (written(RANKS | {b"a" * 2000: 259}), "m is damaged: a token is empty or longer"),
        (written(RANKS), "m has 259 ranks; only Llama 3's, of 128000, are known"),
    ],
)
def test_ranks_that_are_damaged_or_another_models(data: bytes, says: str):
    with pytest.raises(UserError) as caught:
        tiktoken.read_ranks(data, "m")
    assert says in str(caught.value)
