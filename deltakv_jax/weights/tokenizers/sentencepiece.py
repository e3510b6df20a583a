"""SentencePiece vocabularies: a tokenizer.model, or what a GGUF file keeps of one.

A file's bytes never reach the library: what it says is read and checked here, and a new model is
written from that.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

import sentencepiece

from deltakv_jax.errors import UserError
from deltakv_jax.weights.native import reading
from deltakv_jax.weights.tokenizers import protobuf
from deltakv_jax.weights.tokenizers.vocabulary import Part


class Kind(enum.IntEnum):
    """What a piece is; the numbers are those of SentencePiece and of GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class Piece:
    """A token: its text with "▁" for a space, its score (higher merges first), its kind."""

    text: str
    score: float
    kind: Kind


UNIGRAM, BPE = 1, 2  # the algorithms that are supported, by SentencePiece's numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What a SentencePiece model says.

    Attributes:
      pieces: the tokens, by id.
      algorithm: UNIGRAM or BPE.
      add_dummy_prefix: a space goes in front of every text.
      remove_extra_whitespaces: several spaces count as one.
    """

    pieces: tuple[Piece, ...]
    algorithm: int = BPE
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False


class SentencePieceVocabulary:
    """A `Vocabulary` of the sentencepiece library."""

    def __init__(self, model: SentencePieceModel, source: str):
        """Makes the library's model; UserError where the pieces of `source` are refused."""
        self._source = source
        if not all(math.isfinite(piece.score) for piece in model.pieces):
            raise UserError(f"{source} is damaged: a score is no finite number")
        special = (Kind.CONTROL, Kind.UNKNOWN)
        self._ids = {piece.text: number for number, piece in enumerate(model.pieces)}
        self.special: Mapping[str, int] = {
            text: number
            for text, number in self._ids.items()
            if model.pieces[number].kind in special
        }
        self.size = len(model.pieces)
        self.bos_id = self.special.get("<s>")
        with reading(source):
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=_write(model))

    def id_of(self, token: str) -> int | None:
        """The id of a token, special or not."""
        return self._ids.get(token)

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """The ids of a prompt; what follows a special token begins as a text does."""
        with reading(self._source):
            encoded = ([p] if isinstance(p, int) else self._processor.encode(p) for p in parts)
            return [number for ids in encoded for number in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special and unknown ones have none."""
        with reading(self._source):
            return self._processor.decode([number for number in ids if number < self.size])


# The numbers of the fields in SentencePiece's sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_TEXT, _SCORE, _KIND = 1, 2, 3
_ALGORITHM, _SUFFIX, _BYTE_FALLBACK, _UNK_ID, _UNK_SURFACE = 3, 24, 35, 40, 44
_NAME, _CHARSMAP, _DUMMY_PREFIX, _EXTRA_WHITESPACES, _ESCAPE = 1, 2, 3, 4, 5


def parse(data: bytes, source: str) -> SentencePieceModel:
    """Reads the bytes of a tokenizer.model.

    Raises:
      UserError: where they are damaged, or ask for rules that are not supported.
    """
    with reading(source):
        return _parsed(data, source)


def _parsed(data: bytes, source: str) -> SentencePieceModel:
    messages = list(protobuf.fields(data))
    pieces = [_piece(_bytes(value)) for number, value in messages if number == _PIECES]
    below = lambda name: {
        key: value
        for number, message in messages
        if number == name
        for key, value in protobuf.fields(_bytes(message))
    }
    trainer, normalizer = below(_TRAINER), below(_NORMALIZER)
    algorithm = trainer.get(_ALGORITHM, UNIGRAM)
    if not pieces:
        raise UserError(f"{source} is no SentencePiece model: it has no pieces")
    if algorithm not in (UNIGRAM, BPE):
        raise UserError(f"{source}: algorithm {algorithm}, only unigram (1) and BPE (2) are known")
    rules = (normalizer.get(_CHARSMAP), below(_DENORMALIZER).get(_CHARSMAP))
    if any(rules) or trainer.get(_SUFFIX) or not normalizer.get(_ESCAPE, True):
        name = normalizer.get(_NAME, b"")
        raise UserError(f"{source}: normalization {name!r} is not supported, only 'identity'")
    return SentencePieceModel(
        pieces=tuple(pieces),
        algorithm=BPE if algorithm == BPE else UNIGRAM,
        add_dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, True)),
        remove_extra_whitespaces=bool(normalizer.get(_EXTRA_WHITESPACES, True)),
    )


def _piece(message: bytes) -> Piece:
    values = dict(protobuf.fields(message))
    score = values.get(_SCORE, 0.0)
    if not isinstance(score, float):
        raise ValueError(f"a score of {score!r}")
    return Piece(_bytes(values.get(_TEXT)).decode(), score, Kind(values.get(_KIND, Kind.NORMAL)))


def _bytes(value: protobuf.Value | None) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"{value!r} where bytes belong")
    return value


def _write(model: SentencePieceModel) -> bytes:
    """A model as the library reads it, without the special tokens that it would look for."""
    write = protobuf.field
    kinds = [piece.kind for piece in model.pieces]
    unknown = kinds.index(Kind.UNKNOWN) if Kind.UNKNOWN in kinds else 0
    trainer = {
        _ALGORITHM: model.algorithm,
        _BYTE_FALLBACK: int(Kind.BYTE in kinds),
        _UNK_ID: unknown,
        _UNK_SURFACE: b"",
    }
    normalizer = {
        _NAME: b"identity",
        _DUMMY_PREFIX: int(model.add_dummy_prefix),
        _EXTRA_WHITESPACES: int(model.remove_extra_whitespaces),
    }
    message = lambda values: b"".join(write(number, value) for number, value in values.items())
    as_message = lambda piece: message(
        {_TEXT: piece.text.encode(), _SCORE: float(piece.score), _KIND: int(piece.kind)}
    )
    return b"".join(
        [write(_PIECES, as_message(piece)) for piece in model.pieces]
        + [write(_TRAINER, message(trainer)), write(_NORMALIZER, message(normalizer))]
    )
