"""What a `Tokenizer` asks of the library that holds its tokens."""

from collections.abc import Mapping, Sequence
from typing import Protocol

Part = str | int
"""A part of a prompt: text in which nothing is a special token, or the id of one."""


class Vocabulary(Protocol):
    """Tokens, and the rules by which text is cut into them.

    Attributes:
      size: tokens that it knows.
      special: the ids of the special tokens by their text.
      bos_id: the token that its own file puts in front of a text; None if it puts none.
    """

    size: int
    special: Mapping[str, int]
    bos_id: int | None

    def id_of(self, token: str) -> int | None:
        """The id of a token, special or not."""
        ...

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """The ids of a prompt; its text reaches no special token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; special and unknown ones have none."""
        ...
