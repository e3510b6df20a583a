"""Llama 3's ranks file, a `tokenizer.model` of lines: a token in base64 and its rank."""

import base64
import binascii
import re
from collections.abc import Mapping

from deltakv_jax.errors import UserError
from deltakv_jax.weights.native import reading
from deltakv_jax.weights.tokenizers.bytelevel import LLAMA3, byte_level_bpe, to_characters
from deltakv_jax.weights.tokenizers.huggingface import HuggingFaceVocabulary

RANKS = 128_000
"""Tokens of Llama 3's file. The format does not say how text is cut, so no other is taken."""

BOS = "<|begin_of_text|>"
_NAMED = {
    0: BOS,
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
_SPECIAL = 256  # ids after the ranks; those without a name are numbered
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_LONGEST = 1024  # bytes of a token


def is_ranks(data: bytes) -> bool:
    """Whether a file begins as a ranks file does."""
    return _LINE.match(data) is not None


def read_ranks(data: bytes, source: str) -> HuggingFaceVocabulary:
    """The vocabulary of Llama 3 from the bytes of its ranks file.

    Raises:
      UserError: where they are damaged, or the file is another model's.
    """
    ranks = parse(data, source)
    if len(ranks) != RANKS:
        raise UserError(f"{source} has {len(ranks)} ranks; only Llama 3's, of {RANKS}, are known")
    return vocabulary(ranks, source)


def vocabulary(ranks: Mapping[bytes, int], source: str) -> HuggingFaceVocabulary:
    """Llama 3's rules and special tokens with these ranks."""
    special = {name: len(ranks) + number for number, name in enumerate(special_tokens())}
    tokens = {to_characters(token): rank for token, rank in ranks.items()}
    with reading(source):
        tokenizer = byte_level_bpe(LLAMA3, tokens, merges(ranks), special=special)
        made = HuggingFaceVocabulary(tokenizer, source)
    made.bos_id = special[BOS]
    return made


def parse(data: bytes, source: str) -> dict[bytes, int]:
    """The rank of each token, 0, 1, 2 …; UserError where the file is damaged."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{source} is damaged: line {number + 1} is no token and rank"
            ) from None
        if int(rank) != number or len(ranks) != number + 1:
            raise UserError(f"{source} is damaged: line {number + 1} is not the token {number}")
    if not all(0 < len(token) <= _LONGEST for token in ranks):
        raise UserError(f"{source} is damaged: a token is empty or longer than {_LONGEST} bytes")
    return ranks


def merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, by its rank and then by theirs.

    tiktoken merges the neighbours whose bytes together have the lowest rank, however the two came
    to be.
    """
    found = []
    for whole in ranks:
        halves = ((whole[:cut], whole[cut:]) for cut in range(1, len(whole)))
        pairs = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        found += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return [(to_characters(left), to_characters(right)) for left, right in found]


def special_tokens() -> list[str]:
    """The names of the special tokens in the order of their ids, as in Llama 3.1."""
    unnamed = iter(range(_SPECIAL))
    reserved = lambda: f"<|reserved_special_token_{next(unnamed)}|>"
    return [_NAMED.get(number) or reserved() for number in range(_SPECIAL)]
