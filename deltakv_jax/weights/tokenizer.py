"""Text to token ids and back, by a tokenizer.json."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from deltakv_jax.errors import UserError
from deltakv_jax.weights.fields import Fields

_UNFINISHED = "\ufffd"


class Tokenizer:
    """The tokenizer of one model.

    Attributes:
      bos_id: the token that begins every text; None where the model takes none.
      eos_ids: the tokens that end a text.
      vocab_size: tokens that it knows.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        bos_id: int | None,
        eos_ids: frozenset[int],
        limit: int | None = None,
    ):
        """Wraps a tokenizer; `limit` is the number of tokens that the model can embed."""
        self._tokenizer = tokenizer
        self._limit = limit
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self.vocab_size = tokenizer.get_vocab_size()

    @classmethod
    def load(cls, folder: Path, *, limit: int | None = None) -> "Tokenizer":
        """Reads tokenizer.json; BOS and EOS from the JSON files beside it.

        Raises:
          UserError: where tokenizer.json is missing or damaged.
        """
        tokenizer = _read_tokenizer(folder / "tokenizer.json")
        bos_id, eos_ids = _bos_id(tokenizer, folder), _eos_ids(tokenizer, folder)
        return cls(tokenizer, bos_id=bos_id, eos_ids=eos_ids, limit=limit)

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of a text, BOS in front if the model takes one.

        Raises:
          UserError: where a token lies beyond the model's embedding, or the text holds half of a
            surrogate pair.
        """
        _check_unicode(text)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._limit is not None and max(ids, default=0) >= self._limit:
            raise UserError(
                f"the tokenizer gives id {max(ids)}, but the model has {self._limit} tokens"
            )
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens have none."""
        return self._tokenizer.decode(list(ids))

    def stream(self, after: Sequence[int] = ()) -> "Stream":
        """A decoder of one id at a time, for a text that goes on from the ids `after`."""
        return Stream(self, after)


class Stream:
    """Decodes one id at a time into whole characters.

    A character may take several tokens, and some decoders treat the first token of a text
    specially. So ids are decoded together with those of the characters before them, and only what
    this adds is returned.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int]):
        """Starts behind the ids `after`, whose text is not returned."""
        self._decode = tokenizer.decode
        self._window = list(after)
        self._known = len(self._window)  # ids at the window's start whose text was returned

    def push(self, token: int) -> str:
        """The characters that this id completes; "" while the last one is unfinished."""
        self._window.append(token)
        new = self._new_text()
        return "" if new.endswith(_UNFINISHED) else self._returned(new)

    def flush(self) -> str:
        """What is left at the end: an unfinished character, as replacement characters."""
        return self._returned(self._new_text())

    def _new_text(self) -> str:
        known = self._decode(self._window[: self._known])
        return self._decode(self._window)[len(known) :]

    def _returned(self, new: str) -> str:
        """Moves the window up to the ids of `new`, which start and end between characters."""
        if new:
            self._window = self._window[self._known :]
            self._known = len(self._window)
        return new


# Where BOS and EOS are named, the most telling first.
_TOKENIZER_CONFIG = "tokenizer_config.json"
_CONFIGS = ("generation_config.json", "config.json")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is no valid Unicode: {text[error.start]!r} at offset {error.start}"
        ) from None


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise UserError(f"{path}: no such file; a model's folder needs its tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} is damaged: {error}") from None


def _read_optional(path: Path) -> Fields:
    return Fields.read(path) if path.exists() else Fields(str(path), {})


def _bos_id(tokenizer: tokenizers.Tokenizer, folder: Path) -> int | None:
    """The id of the token that tokenizer_config.json names, else the one the configs give."""
    fields = _read_optional(folder / _TOKENIZER_CONFIG)
    if not fields.get("add_bos_token", bool, True):
        return None
    named = _named_id(tokenizer, fields, "bos_token")
    given = [one for name in _CONFIGS for one in _given_ids(folder / name, "bos_token_id")]
    return next(iter([*named, *given]), None)


def _eos_ids(tokenizer: tokenizers.Tokenizer, folder: Path) -> frozenset[int]:
    """All of them: chat models end a turn and a text by different tokens."""
    named = _named_id(tokenizer, _read_optional(folder / _TOKENIZER_CONFIG), "eos_token")
    given = [one for name in _CONFIGS for one in _given_ids(folder / name, "eos_token_id")]
    return frozenset([*named, *given])


def _named_id(tokenizer: tokenizers.Tokenizer, fields: Fields, name: str) -> list[int]:
    """The id of the token that a field names, as a string or as an object with its content."""
    value = fields.values.get(name)
    piece = fields.below(name).get("content", str) if isinstance(value, dict) else value
    number = tokenizer.token_to_id(piece) if isinstance(piece, str) else None
    return [] if number is None else [number]


def _given_ids(path: Path, name: str) -> list[int]:
    return list(_read_optional(path).integers(name))
