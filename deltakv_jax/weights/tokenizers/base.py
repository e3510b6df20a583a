"""A model's tokenizer: its vocabulary, the tokens that begin and end a text, its chat template."""

from collections.abc import Collection, Sequence
from pathlib import Path

from deltakv_jax.errors import UserError
from deltakv_jax.weights.tokenizers.chat import ChatTemplate, Message, chat_parts
from deltakv_jax.weights.tokenizers.folder import read_folder
from deltakv_jax.weights.tokenizers.specials import split
from deltakv_jax.weights.tokenizers.stream import Stream
from deltakv_jax.weights.tokenizers.vocabulary import Part, Vocabulary

# Special tokens that end a text or a turn wherever a vocabulary has them.
_ENDS = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>")


class Tokenizer:
    """The tokenizer of one model.

    Attributes:
      bos_id: the token that begins every text; None where the model takes none.
      eos_ids: the tokens that end a text or a turn of a conversation.
      vocab_size: tokens that it knows.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        bos_id: int | None,
        eos_ids: Collection[int],
        template: ChatTemplate | None = None,
        limit: int | None = None,
    ):
        """Takes what a model's files say; `limit` is the number of tokens that it can embed."""
        self._vocabulary = vocabulary
        self._template = template
        self._limit = limit
        self.bos_id = bos_id
        ends = [vocabulary.special[name] for name in _ENDS if name in vocabulary.special]
        self.eos_ids = frozenset([*eos_ids, *ends])
        self.vocab_size = vocabulary.size

    @classmethod
    def load(cls, folder: Path, *, limit: int | None = None) -> "Tokenizer":
        """Reads tokenizer.json, or else tokenizer.model, and the JSON files beside it.

        Args:
          folder: holds one of: tokenizer.json, tokenizer.model (SentencePiece's or Llama 3's
            ranks), a single .tiktoken file (Llama 3's ranks).
          limit: the number of tokens that the model can embed.

        Raises:
          UserError: where there is none of these, or it is damaged or not supported.
        """
        vocabulary, bos_id, eos_ids, template = read_folder(folder)
        return cls(vocabulary, bos_id=bos_id, eos_ids=eos_ids, template=template, limit=limit)

    def encode(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        """The ids of a text, BOS in front if `bos` and the model takes one.

        Special tokens in the text are plain characters, unless `special` asks for their ids.

        Raises:
          UserError: where a token lies beyond the model's embedding, or the text holds half of a
            surrogate pair.
        """
        _check_unicode(text)
        parts = split(text, self._vocabulary.special) if special else [text]
        return self._begun(self._encode(parts), bos)

    def encode_chat(self, messages: Sequence[Message], *, special: bool = False) -> list[int]:
        """The ids of a conversation, up to where the model's answer begins.

        The chat template's special tokens get their ids. Those in the messages are plain
        characters, unless `special` asks for their ids. BOS comes first, once, if the model takes
        one, whether the template writes it or not.

        Raises:
          UserError: as `encode`, and where the model has no chat template or it fails.
        """
        if self._template is None:
            raise UserError("the model has no chat template; without one, give it plain text")
        for message in messages:
            _check_unicode(message["content"])
        names = self._vocabulary.special
        ids = self._encode(chat_parts(self._template, messages, names, parse_contents=special))
        return ids if ids[:1] == [self.bos_id] else self._begun(ids, True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special tokens have none."""
        return self._vocabulary.decode(ids)

    def stream(self, after: Sequence[int] = ()) -> Stream:
        """A decoder of one id at a time, for a text that goes on from the ids `after`."""
        return Stream(self.decode, after)

    def _encode(self, parts: Sequence[Part]) -> list[int]:
        ids = self._vocabulary.encode(parts)
        if self._limit is not None and max(ids, default=0) >= self._limit:
            raise UserError(
                f"the tokenizer gives id {max(ids)}, but the model has {self._limit} tokens"
            )
        return ids

    def _begun(self, ids: list[int], bos: bool) -> list[int]:
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is no valid Unicode: {text[error.start]!r} at offset {error.start}"
        ) from None
