"""Byte-level BPE: text is cut by a pattern, and the bytes of each piece are merged to tokens.

A byte of a token is written as a printable character, as GPT-2 began it.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a family of models cuts text into tokens.

    Attributes:
      patterns: each cuts further what the one before has cut.
      ignore_merges: a piece that is a token as a whole is taken as it is.
      composed: text is brought to Unicode's form NFC first.
      adds_bos: BOS goes in front of a text, unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    composed: bool = False
    adds_bos: bool = False


GPT2 = Rules((_GPT2,))
LLAMA3 = Rules((_CL100K % "{1,3}",), ignore_merges=True, adds_bos=True)
QWEN2 = Rules((_CL100K % "",), composed=True)
SMOLLM = Rules((r"\p{N}", _GPT2))


def byte_level_bpe(
    rules: Rules,
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    special: Iterable[str],
    user_defined: Iterable[str] = (),
) -> tokenizers.Tokenizer:
    """Makes a tokenizer.

    Args:
      rules: how text is cut.
      vocabulary: all tokens and their ids.
      merges: pairs of tokens that become one, the first ones first.
      special: tokens that only a special token's id stands for.
      user_defined: tokens that are found in any text before it is cut.
    """
    bpe = models.BPE(vocab=dict(vocabulary), merges=list(merges), ignore_merges=rules.ignore_merges)
    tokenizer = tokenizers.Tokenizer(bpe)
    if rules.composed:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in rules.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    added = lambda token, special: tokenizers.AddedToken(token, normalized=False, special=special)
    tokenizer.add_special_tokens([added(token, True) for token in special])
    tokenizer.add_tokens([added(token, False) for token in user_defined])
    return tokenizer


def _characters() -> list[str]:
    """The character that stands for each byte: itself if it can be seen, else one from U+0100."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


_CHARACTERS = dict(enumerate(_characters()))


def to_characters(token: bytes) -> str:
    """The text that stands for the bytes of a token."""
    return token.decode("latin-1").translate(_CHARACTERS)
