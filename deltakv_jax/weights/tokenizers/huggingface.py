"""Vocabularies that Hugging Face's `tokenizers` library holds: tokenizer.json and its like."""

import functools
import secrets
from collections.abc import Mapping, Sequence

import tokenizers

from deltakv_jax.weights.native import reading
from deltakv_jax.weights.tokenizers.vocabulary import Part


class HuggingFaceVocabulary:
    """A `Vocabulary` of the `tokenizers` library."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, source: str):
        """Takes a tokenizer over; `source` is the file that it is from, for errors."""
        self._tokenizer, self._source = tokenizer, source
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # as plain text, that is
        added = tokenizer.get_added_tokens_decoder().items()
        self._special = {number: token for number, token in added if token.special}
        self.special: Mapping[str, int] = {
            token.content: number for number, token in self._special.items()
        }
        self.size = tokenizer.get_vocab_size()
        self.bos_id = _put_in_front(tokenizer)

    def id_of(self, token: str) -> int | None:
        """The id of a token, special or not."""
        return self._tokenizer.token_to_id(token)

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """The ids of a prompt; its text reaches no special token."""
        with reading(self._source):
            if all(isinstance(part, str) for part in parts):
                text = "".join(map(str, parts))
                return self._tokenizer.encode(text, add_special_tokens=False).ids
            return self._encode_with_special(parts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special and unknown ones have none."""
        with reading(self._source):
            return self._tokenizer.decode(list(ids))

    def _encode_with_special(self, parts: Sequence[Part]) -> list[int]:
        """Encodes all parts at once: the library's rules look beyond a special token."""
        aliases, tokenizer = self._aliased
        by_alias = {alias: number for number, alias in aliases.items()}
        text = "".join(part if isinstance(part, str) else aliases[part] for part in parts)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        pairs = zip(encoding.tokens, encoding.ids, strict=True)
        # a token may take the spaces beside it in
        return [by_alias.get(token.strip(), number) for token, number in pairs]

    @functools.cached_property
    def _aliased(self) -> tuple[dict[int, str], tokenizers.Tokenizer]:
        """A copy in which every special token has another name, by which text cannot reach it."""
        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        copy.encode_special_tokens = True
        secret = secrets.token_hex(16)
        aliases = {number: f"\ufdd0{secret}:{number}\ufdd1" for number in self._special}
        copy.add_tokens([_renamed(self._special[k], alias) for k, alias in aliases.items()])
        return aliases, copy


def _put_in_front(tokenizer: tokenizers.Tokenizer) -> int | None:
    """The token that the post-processor puts in front of a text."""
    whole, plain = (tokenizer.encode("a", add_special_tokens=add).ids for add in (True, False))
    return whole[0] if whole[1 : len(plain) + 1] == plain != whole[: len(plain)] else None


def _renamed(token: tokenizers.AddedToken, alias: str) -> tokenizers.AddedToken:
    """The same token by another name, no special one, as those are not looked for."""
    return tokenizers.AddedToken(
        alias, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False, special=False
    )


def parse(data: bytes, source: str) -> HuggingFaceVocabulary:
    """Reads the bytes of a tokenizer.json; UserError where they are damaged."""
    with reading(source):
        return HuggingFaceVocabulary(tokenizers.Tokenizer.from_buffer(data), source)
