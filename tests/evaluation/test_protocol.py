"""The protocols, position by position."""

import numpy as np
import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import protocol
from deltakv_jax.evaluation.protocol import PROTOCOLS
from deltakv_jax.weights import Tokenizer

BOS = 1


def cut(
    tokens: int,
    ctx: int,
    limit: int | None = None,
    bos_id: int | None = BOS,
    by: str = "llama.cpp",
):
    ids = np.arange(100, 100 + tokens, dtype=np.int32)
    return protocol.cut(ids, PROTOCOLS[by], ctx=ctx, bos_id=bos_id, limit=limit)


class Letters(Tokenizer):
    """A tokenizer whose tokens are characters."""

    def __init__(self):
        self.bos_id = BOS

    def encode(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        del special
        return [BOS] * bos + [ord(letter) for letter in text]


def test_chunks_do_not_overlap_and_begin_with_bos():
    chunks = cut(26, 8)
    assert chunks.available == 3
    np.testing.assert_array_equal(
        chunks.tokens, [[BOS, *range(start + 1, start + 8)] for start in (100, 108, 116)]
    )


def test_without_a_bos_the_first_token_stays():
    np.testing.assert_array_equal(cut(8, 8, bos_id=None).tokens, [range(100, 108)])


@pytest.mark.parametrize(("ctx", "first", "scored"), [(512, 256, 255), (8, 4, 3), (9, 4, 4)])
def test_the_second_half_is_scored(ctx, first, scored):
    """Positions ctx // 2 … ctx - 2, each predicting the next token."""
    chunks = cut(2 * ctx, ctx)
    assert chunks.first == first
    assert chunks.scored == 2 * scored


def test_a_limit_takes_the_first_chunks():
    chunks = cut(100, 8, limit=2)
    assert (len(chunks.tokens), chunks.available, chunks.scored) == (2, 12, 6)
    assert len(cut(100, 8, limit=50).tokens) == 12


def test_a_text_shorter_than_a_chunk_is_refused_with_what_would_do():
    with pytest.raises(UserError, match=r"has 40 tokens.*--ctx 512.*--ctx 40 or less"):
        cut(40, 512)
    with pytest.raises(UserError, match=r"has 5 tokens.*give a longer text$"):
        cut(5, 512)


def test_the_tokens_given_are_left_alone():
    ids = np.arange(16, dtype=np.int32) + 7
    protocol.cut(ids, PROTOCOLS["llama.cpp"], ctx=8, bos_id=BOS, limit=None)
    assert ids[0] == 7


def test_gptq_scores_every_prediction_of_windows_that_keep_their_first_token():
    chunks = cut(26, 8, by="gptq")
    np.testing.assert_array_equal(chunks.tokens, np.arange(100, 124).reshape(3, 8))
    assert chunks.first == 0
    assert chunks.scored == 3 * 7
    assert PROTOCOLS["gptq"].ctx == 2048


def test_gptq_joins_rows_with_an_empty_line_and_empties_blank_ones():
    """`"\n\n".join(dataset["text"])`, where a row is a line with its end, or "" if blank."""
    content = " = Title = \n \n Text . \n\nEnd"
    want = "\n\n".join([" = Title = \n", "", " Text . \n", "", "End"])
    assert PROTOCOLS["gptq"].prepare(content) == want
    assert PROTOCOLS["llama.cpp"].prepare(content) == content


def test_a_text_begins_with_one_bos():
    got = protocol.tokenize(Letters(), "a\nb", PROTOCOLS["gptq"])
    assert got.tolist() == [BOS, *map(ord, "a\n\n\nb")]


def test_a_text_without_tokens_is_refused():
    with pytest.raises(UserError, match="has no tokens"):
        protocol.tokenize(Letters(), "", PROTOCOLS["llama.cpp"])
