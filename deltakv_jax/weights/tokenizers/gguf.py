"""The tokenizer that a GGUF file's metadata describes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from deltakv_jax.errors import UserError
from deltakv_jax.weights.fields import Fields
from deltakv_jax.weights.native import reading
from deltakv_jax.weights.tokenizers import bytelevel
from deltakv_jax.weights.tokenizers.base import Tokenizer
from deltakv_jax.weights.tokenizers.chat import ChatTemplate
from deltakv_jax.weights.tokenizers.huggingface import HuggingFaceVocabulary
from deltakv_jax.weights.tokenizers.sentencepiece import (
    Kind,
    Piece,
    SentencePieceModel,
    SentencePieceVocabulary,
)
from deltakv_jax.weights.tokenizers.vocabulary import Vocabulary

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"

# By `tokenizer.ggml.pre`: the rules of the model that the file was made from.
RULES: Mapping[str, bytelevel.Rules] = {
    "gpt-2": bytelevel.GPT2,
    "llama3": bytelevel.LLAMA3,
    "llama-v3": bytelevel.LLAMA3,
    "llama-bpe": bytelevel.LLAMA3,
    "qwen2": bytelevel.QWEN2,
    "deepseek-r1-qwen": bytelevel.QWEN2,
    "smollm": bytelevel.SMOLLM,
}


def tokenizer_from_gguf(metadata: Mapping[str, Any], *, source: str, limit: int) -> Tokenizer:
    """Makes the tokenizer of a GGUF file.

    Args:
      metadata: its key-value pairs; arrays are lists.
      source: the file, for errors.
      limit: the number of tokens that the model can embed.

    Raises:
      UserError: where a value is missing, of the wrong type or not supported.
    """
    fields = Fields(source, {name: metadata[name] for name in metadata if _is_ours(name)})
    tokens = _list(fields, "tokens", str)
    made = _MODELS[_one_of(fields, "model", _MODELS)](fields, tokens)
    given = {name: _token_id(fields, f"{name}_token_id", len(tokens)) for name in _ENDS}
    ends = [made.eos_id, *given.values()]
    return Tokenizer(
        made.vocabulary,
        bos_id=made.bos_id if fields.get(f"{_PREFIX}add_bos_token", bool, made.adds_bos) else None,
        eos_ids=[one for one in ends if one is not None],
        template=_template(fields, tokens, made),
        limit=limit,
    )


_ENDS = ("eot", "eom")  # besides EOS


class _Made(NamedTuple):
    """A vocabulary, and what its kind says of the tokens around a text."""

    vocabulary: Vocabulary
    bos_id: int | None
    eos_id: int | None
    adds_bos: bool


def _is_ours(name: str) -> bool:
    return name.startswith(_PREFIX) or name == _TEMPLATE


def _sentencepiece(fields: Fields, tokens: list[str]) -> _Made:
    """Llama 2's kind: pieces are merged by their scores."""
    scores = _list(fields, "scores", float, len(tokens))
    pieces = map(Piece, tokens, scores, _kinds(fields, len(tokens)))
    prefix = fields.get(f"{_PREFIX}add_space_prefix", bool, True)
    model = SentencePieceModel(pieces=tuple(pieces), add_dummy_prefix=prefix)
    bos_id, eos_id = (
        _token_id(fields, f"{name}_token_id", len(tokens), default)
        for name, default in (("bos", 1), ("eos", 2))
    )
    return _Made(SentencePieceVocabulary(model, fields.source), bos_id, eos_id, adds_bos=True)


def _byte_level(fields: Fields, tokens: list[str]) -> _Made:
    """Llama 3's kind: the bytes of a piece are merged by a list of merges."""
    rules = RULES[_one_of(fields, "pre", RULES)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(f"{fields.source} is damaged: {_PREFIX}tokens has a token twice")
    kinds = dict(zip(tokens, _kinds(fields, len(tokens)), strict=True))
    of = lambda *wanted: [token for token, kind in kinds.items() if kind in wanted]
    with reading(fields.source):
        tokenizer = bytelevel.byte_level_bpe(
            rules,
            vocabulary,
            [_merge(fields, one) for one in _list(fields, "merges", str)],
            special=of(Kind.CONTROL, Kind.UNKNOWN),
            user_defined=of(Kind.USER_DEFINED),
        )
        made = HuggingFaceVocabulary(tokenizer, fields.source)
    bos_id, eos_id = (_token_id(fields, f"{name}_token_id", len(tokens)) for name in ("bos", "eos"))
    return _Made(made, bos_id, eos_id, adds_bos=rules.adds_bos)


_MODELS: Mapping[str, Callable[[Fields, list[str]], _Made]] = {
    "llama": _sentencepiece,
    "gpt2": _byte_level,
}


def _one_of(fields: Fields, name: str, known: Mapping[str, Any]) -> str:
    value = fields.get(f"{_PREFIX}{name}", str)
    if value not in known:
        raise UserError(
            f"{fields.source}: {_PREFIX}{name} is {value!r}; supported are {', '.join(known)}"
        )
    return value


def _list(fields: Fields, name: str, kind: type, count: int | None = None) -> list:
    """An array of the metadata, its elements and their number checked."""
    value = fields.values.get(f"{_PREFIX}{name}")
    if not isinstance(value, list) or not all(type(one) is kind for one in value):
        raise UserError(f"{fields.source}: {_PREFIX}{name} must be an array of {kind.__name__}")
    if count not in (None, len(value)):
        raise UserError(
            f"{fields.source}: {_PREFIX}{name} has {len(value)} values for {count} tokens"
        )
    return value


def _kinds(fields: Fields, count: int) -> list[Kind]:
    numbers = _list(fields, "token_type", int, count)
    try:
        return [Kind(number) for number in numbers]
    except ValueError as error:
        raise UserError(f"{fields.source}: {_PREFIX}token_type: {error}") from None


def _merge(fields: Fields, merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise UserError(f"{fields.source}: {_PREFIX}merges: {merge!r} is no pair of tokens")
    return left, right


def _token_id(fields: Fields, name: str, count: int, default: int | None = None) -> int | None:
    """The id in a field, below the number of tokens."""
    if f"{_PREFIX}{name}" not in fields and default is None:
        return None
    number = fields.get(f"{_PREFIX}{name}", int, default)
    if not 0 <= number < count:
        raise UserError(f"{fields.source}: {_PREFIX}{name} is {number}, of {count} tokens")
    return number


def _template(fields: Fields, tokens: list[str], made: _Made) -> ChatTemplate | None:
    if _TEMPLATE not in fields:
        return None
    numbers = {"bos_token": made.bos_id, "eos_token": made.eos_id}
    variables = {name: tokens[one] for name, one in numbers.items() if one is not None}
    return ChatTemplate(fields.source, fields.get(_TEMPLATE, str), variables)
