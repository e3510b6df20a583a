"""Small vocabularies of each kind, made without a file."""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from deltakv_jax.weights.tokenizers.huggingface import HuggingFaceVocabulary
from deltakv_jax.weights.tokenizers.sentencepiece import (
    Kind,
    Piece,
    SentencePieceModel,
    SentencePieceVocabulary,
)

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "a", "b", "c", "ab", "▁a", "▁ab", "é▁"]
PIECES = (
    Piece("<unk>", 0.0, Kind.UNKNOWN),
    Piece("<s>", 0.0, Kind.CONTROL),
    Piece("</s>", 0.0, Kind.CONTROL),
    *(Piece(byte, 0.0, Kind.BYTE) for byte in BYTES),
    *(Piece(word, -float(rank), Kind.NORMAL) for rank, word in enumerate(WORDS)),
    Piece("<tool>", 0.0, Kind.USER_DEFINED),
)
"""Llama 2's kind, in small: special tokens, bytes, words, a token of the user's."""


def pieces() -> SentencePieceVocabulary:
    return SentencePieceVocabulary(SentencePieceModel(pieces=PIECES), "tokenizer.model")


def metadata(**changes: Any) -> dict[str, Any]:
    """What a GGUF file says of those pieces, with keys changed; None takes one away."""
    values = {
        "model": "llama",
        "tokens": [piece.text for piece in PIECES],
        "scores": [piece.score for piece in PIECES],
        "token_type": [int(piece.kind) for piece in PIECES],
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def byte_fallback(*, spaced: bool) -> HuggingFaceVocabulary:
    """Every token is a byte, but for one of two characters.

    If `spaced`, as SentencePiece does it: a text begins with a space that its decoder takes off,
    and bytes are tokens of their own beside the characters.
    """
    vocab = {byte: number for number, byte in enumerate(BYTES)} | {"▁": 256, "é▁": 257}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    space = decoders.Replace("▁", " ")
    parts = [space, decoders.ByteFallback(), decoders.Fuse()]
    if spaced:
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        parts.append(decoders.Strip(" ", left=1, right=0))
    inner.decoder = decoders.Sequence(parts)
    return HuggingFaceVocabulary(inner, "tokenizer.json")


def byte_level(special: tuple[str, ...] = (), **flags: bool) -> tokenizers.Tokenizer:
    """Every token is a byte, and the special ones follow."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizers.AddedToken(one, **flags) for one in special])
    return inner


def ids_of(vocabulary: HuggingFaceVocabulary | SentencePieceVocabulary, text: str) -> list[int]:
    return vocabulary.encode([text] if text else [])


def without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}
