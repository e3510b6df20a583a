import contextlib
import dataclasses
import random

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.weights.tokenizers.protobuf import field
from deltakv_jax.weights.tokenizers.sentencepiece import (
    UNIGRAM,
    Kind,
    Piece,
    SentencePieceModel,
    SentencePieceVocabulary,
    parse,
)
from tests.weights.tokenizers.material import PIECES, pieces

MODEL = SentencePieceModel(pieces=PIECES)
NAMES = [piece.text for piece in PIECES]
BPE = field(2, field(3, 2))
IDENTITY = field(3, field(1, b"identity") + field(4, 0))


def written(*, trainer: bytes = BPE, normalizer: bytes = IDENTITY) -> bytes:
    """A tokenizer.model of those pieces, byte by byte."""
    entries = (
        field(1, piece.text.encode()) + field(2, piece.score) + field(3, int(piece.kind))
        for piece in PIECES
    )
    return b"".join([*(field(1, one) for one in entries), trainer, normalizer])


def tokens(vocabulary: SentencePieceVocabulary, *parts: str | int) -> list[str]:
    return [NAMES[number] for number in vocabulary.encode(parts)]


def test_pieces_merge_by_their_scores():
    assert tokens(pieces(), "ab ac") == ["▁ab", "▁a", "c"]


def test_a_character_without_a_token_is_its_bytes():
    assert tokens(pieces(), "é") == ["▁", "<0xC3>", "<0xA9>"]
    assert pieces().decode(pieces().encode(["aé€"])) == "aé€"


def test_invalid_bytes_have_a_replacement_for_text():
    first = NAMES.index("<0x00>")
    assert pieces().decode([first + 0xC3]) == "\ufffd"


def test_special_tokens_in_text_are_plain_characters():
    vocabulary = pieces()
    assert vocabulary.special == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert not {0, 1, 2} & set(vocabulary.encode(["a<s>b</s><unk>"]))


def test_what_follows_a_special_token_begins_as_a_text_does():
    assert tokens(pieces(), 1, "ab", 2, "ab") == ["<s>", "▁ab", "</s>", "▁ab"]


def test_tokens_of_the_user_are_found_in_any_text():
    assert tokens(pieces(), "a<tool>b") == ["▁a", "<tool>", "b"]


def test_special_and_unknown_ids_have_no_text():
    assert pieces().decode([0, 1, *pieces().encode(["a b"]), 2, 9999]) == "a b"


def test_a_model_without_a_dummy_prefix():
    plain = SentencePieceVocabulary(dataclasses.replace(MODEL, add_dummy_prefix=False), "m")
    assert tokens(plain, "ab ab") == ["ab", "▁ab"]


def test_a_model_is_read():
    assert parse(written(), "m") == MODEL


def test_what_a_model_does_not_say_is_as_the_format_has_it():
    model = parse(written(trainer=b"", normalizer=b""), "m")
    assert (model.algorithm, model.add_dummy_prefix) == (UNIGRAM, True)
    assert model.remove_extra_whitespaces
    spaces = SentencePieceVocabulary(model, "m")
    assert spaces.encode(["a    b"]) == spaces.encode(["a b"])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "m is no SentencePiece model: it has no pieces"),
        (written()[:-3], "m is damaged: "),
        (b"not a model", "m is damaged: "),
        (written(trainer=field(2, field(3, 4))), "m: algorithm 4, only unigram"),
        (written(trainer=BPE + field(2, field(24, 1))), "is not supported"),
        (written(normalizer=field(3, field(1, b"nmt_nfkc") + field(2, b"1234"))), "b'nmt_nfkc' is"),
        (written(normalizer=field(3, field(5, 0))), "is not supported"),
        (written() + field(1, field(1, b"x") + field(3, 9)), "m is damaged: 9 is not a valid Kind"),
        (written() + field(1, field(1, b"x") + field(2, 1)), "m is damaged: a score of 1"),
        (written() + field(1, field(1, b"\xff")), "m is damaged: 'utf-8' codec"),
        (written() + field(1, 7), "m is damaged: 7 where bytes belong"),
    ],
)
def test_a_model_that_is_damaged_or_not_supported(data: bytes, says: str):
    with pytest.raises(UserError) as caught:
        parse(data, "m")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        (Piece("ab", 0.0, Kind.NORMAL), "ab is already defined"),
        (Piece("", 0.0, Kind.NORMAL), "piece must not be empty"),
        (Piece("x", float("nan"), Kind.NORMAL), "m is damaged: a score is no finite number"),
        (Piece("x", 1e300, Kind.NORMAL), "m is damaged: "),
        (Piece("x", 0.0, Kind.UNKNOWN), "unk is already defined"),
        (Piece("<0x100>", 0.0, Kind.BYTE), "m is damaged: "),
    ],
)
def test_pieces_that_the_library_refuses(piece: Piece, says: str):
    with pytest.raises(UserError) as caught:
        SentencePieceVocabulary(SentencePieceModel(pieces=(*PIECES, piece)), "m")
    assert says in str(caught.value)


def test_damaged_bytes_are_refused_or_make_a_vocabulary():
    data, draw = written(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(len(data))] = draw.randrange(256)
        with contextlib.suppress(UserError):
            vocabulary = SentencePieceVocabulary(parse(bytes(damaged), "m"), "m")
            vocabulary.decode(vocabulary.encode(["ab <s> é"]))
