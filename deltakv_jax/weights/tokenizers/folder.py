"""The tokenizer of a model's folder, from whichever files it lies in."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deltakv_jax.errors import UserError
from deltakv_jax.weights.fields import Fields
from deltakv_jax.weights.native import reading
from deltakv_jax.weights.tokenizers import huggingface, sentencepiece, tiktoken
from deltakv_jax.weights.tokenizers.chat import ChatTemplate
from deltakv_jax.weights.tokenizers.vocabulary import Vocabulary

_CONFIG = "tokenizer_config.json"
# Where BOS and EOS are given besides, the most telling first.
_CONFIGS = ("generation_config.json", "config.json")
_TEMPLATE = "chat_template.jinja"
_LARGEST = 1 << 28  # bytes of a file; the largest known have 34 MB


class Read(NamedTuple):
    """What a model's files say of its tokenizer."""

    vocabulary: Vocabulary
    bos_id: int | None
    eos_ids: frozenset[int]
    template: ChatTemplate | None


def read_folder(folder: Path) -> Read:
    """Reads tokenizer.json, else tokenizer.model, else a .tiktoken file; and what configures it.

    Raises:
      UserError: where there is no such file, or one is damaged or not supported.
    """
    config = _read_optional(folder / _CONFIG)
    vocabulary = _vocabulary(folder, config)
    bos_id = _bos_id(vocabulary, config, folder)
    eos_ids = _eos_ids(vocabulary, config, folder)
    return Read(vocabulary, bos_id, eos_ids, _template(config, folder))


def _vocabulary(folder: Path, config: Fields) -> Vocabulary:
    names = ("tokenizer.json", "tokenizer.model", "*.tiktoken")
    paths = [path for name in names for path in sorted(folder.glob(name)) if path.is_file()]
    if not paths:
        raise UserError(
            f"{folder / names[0]}: no such file, nor a tokenizer.model or .tiktoken file"
        )
    path = paths[0]
    data = _read_bytes(path)
    if path.name == "tokenizer.json":
        return huggingface.parse(data, str(path))
    if tiktoken.is_ranks(data):
        return tiktoken.read_ranks(data, str(path))
    model = sentencepiece.parse(data, str(path))
    return sentencepiece.SentencePieceVocabulary(_with_added(model, folder, config), str(path))


def _read_bytes(path: Path) -> bytes:
    with reading(path):
        size = path.stat().st_size
        if size > _LARGEST:
            raise UserError(f"{path} has {size} bytes, too many for a tokenizer")
        return path.read_bytes()


def _with_added(
    model: sentencepiece.SentencePieceModel, folder: Path, config: Fields
) -> sentencepiece.SentencePieceModel:
    """The model with the tokens that tokenizer_config.json puts behind its pieces."""
    decoder, added = config.below("added_tokens_decoder"), []
    for number in range(len(model.pieces), len(model.pieces) + len(decoder.values)):
        if str(number) not in decoder:
            break
        token = decoder.below(str(number))
        kind = sentencepiece.Kind.USER_DEFINED
        if token.get("special", bool, False):
            kind = sentencepiece.Kind.CONTROL
        added.append(sentencepiece.Piece(token.get("content", str), 0.0, kind))
    pieces = (*model.pieces, *added)
    _check_added(folder, len(pieces), [int(one) for one in decoder.values if one.isdecimal()])
    return dataclasses.replace(model, pieces=pieces)


def _check_added(folder: Path, known: int, listed: list[int]) -> None:
    """Raises UserError where a file adds tokens that cannot be placed."""
    path = folder / "added_tokens.json"
    others = _read_optional(path)
    numbers = [*listed, *(number for name in others.values for number in others.integers(name))]
    if max(numbers, default=0) >= known:
        source = path if listed == [] else folder / _CONFIG
        raise UserError(f"{source} adds token {max(numbers)} to {known}; needs a tokenizer.json")


def _read_optional(path: Path) -> Fields:
    return Fields.read(path) if path.exists() else Fields(str(path), {})


# Classes of transformers that put BOS in front of a text unless told otherwise; all others do what
# their tokenizer.json says. A folder that names none is one of ours.
_WITH_BOS = (None, "LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer")


def _bos_id(vocabulary: Vocabulary, config: Fields, folder: Path) -> int | None:
    """The id of the token that tokenizer_config.json names, else the one the configs give."""
    asked = "add_bos_token" in config
    if not config.get("add_bos_token", bool, True):
        return None
    if not asked and config.values.get("tokenizer_class") not in _WITH_BOS:
        return vocabulary.bos_id
    named = _named_id(vocabulary, config, "bos_token")
    given = [one for name in _CONFIGS for one in _given_ids(folder / name, "bos_token_id")]
    return next(iter([*named, *given]), vocabulary.bos_id)


def _eos_ids(vocabulary: Vocabulary, config: Fields, folder: Path) -> frozenset[int]:
    """All of them: chat models end a turn and a text by different tokens."""
    named = _named_id(vocabulary, config, "eos_token")
    given = [one for name in _CONFIGS for one in _given_ids(folder / name, "eos_token_id")]
    return frozenset([*named, *given])


def _named_id(vocabulary: Vocabulary, config: Fields, name: str) -> list[int]:
    """The id of the token that a field names."""
    with reading(config.source):  # JSON may hold half of a surrogate pair
        numbers = [vocabulary.id_of(token) for token in _named(config, name)]
    return [number for number in numbers if number is not None]


def _named(config: Fields, name: str) -> Iterator[str]:
    """The token that a field names, as a string or as an object with its content."""
    value = config.values.get(name)
    token = config.below(name).get("content", str) if isinstance(value, dict) else value
    if isinstance(token, str):
        yield token


def _given_ids(path: Path, name: str) -> list[int]:
    return list(_read_optional(path).integers(name))


def _template(config: Fields, folder: Path) -> ChatTemplate | None:
    """The template in a file of its own, else the one in tokenizer_config.json."""
    path = folder / _TEMPLATE
    text = _read_template(path) if path.is_file() else _default_template(config)
    if text is None:
        return None
    source = str(path) if path.is_file() else config.source
    tokens = {name: token for name in ("bos_token", "eos_token") for token in _named(config, name)}
    return ChatTemplate(source, text, tokens)


def _read_template(path: Path) -> str:
    try:
        return _read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start}") from None


def _default_template(config: Fields) -> str | None:
    """The template that tokenizer_config.json holds, of several the one named "default"."""
    value = config.values.get("chat_template")
    if not isinstance(value, list):
        return config.get("chat_template", str) if "chat_template" in config else None
    named = [
        Fields(f"{config.source}: chat_template", one) for one in value if isinstance(one, dict)
    ]
    texts = {one.get("name", str): one.get("template", str) for one in named}
    if "default" not in texts:
        raise UserError(f"{config.source}: chat_template has no default, only {sorted(texts)}")
    return texts["default"]
