"""Special tokens in text: found where they are meant, and disguised where they are not.

A chat template's own text is read for special tokens, the messages in it are not. What the template
makes of a message (trimmed, joined, repeated) cannot be told from its own text afterwards. So
wherever a special token begins in a message, its first character is exchanged for a stand-in that
occurs nowhere else. The template is rendered, its special tokens are found, and only then do the
stand-ins become the characters again, in text that is not looked at for special tokens.
"""

import re
from collections.abc import Iterable, Mapping

from deltakv_jax.weights.tokenizers.vocabulary import Part

_FIRST_STAND_IN = 0xFDD0  # the first of Unicode's noncharacters, which no text is made of


def split(text: str, special: Mapping[str, int]) -> list[Part]:
    """Cuts a text at its special tokens, which become ids; of several the longest counts."""
    parts: list[Part] = []
    end = 0
    for match in re.finditer(_any_of(special), text):
        parts += [text[end : match.start()], special[match.group()]]
        end = match.end()
    parts.append(text[end:])
    return [part for part in parts if part != ""]


class Disguise:
    """Stand-ins for the characters that special tokens begin with."""

    def __init__(self, special: Iterable[str], texts: Iterable[str]):
        """Chooses stand-ins that occur in none of the texts."""
        self._names = [name for name in special if name]
        taken = frozenset().union(*texts)
        free = (chr(code) for code in range(_FIRST_STAND_IN, 0x110000) if chr(code) not in taken)
        firsts = sorted({name[0] for name in self._names})
        self._stand_ins = dict(zip(firsts, free, strict=False))

    def put_on(self, text: str) -> str:
        """The text with a stand-in wherever a special token begins, or may begin at its end."""
        letters = list(text)
        for at in [*self._starts(text), *self._starts_at_end(text)]:
            letters[at] = self._stand_ins[text[at]]
        return "".join(letters)

    def take_off(self, text: str) -> str:
        """The text as it was."""
        return text.translate({ord(to): first for first, to in self._stand_ins.items()})

    def _starts(self, text: str) -> list[int]:
        return [match.start() for match in re.finditer(f"(?={_any_of(self._names)})", text)]

    def _starts_at_end(self, text: str) -> list[int]:
        """Where what follows the text might complete a special token; templates trim texts."""
        text = text.rstrip()
        longest = max(map(len, self._names), default=0)
        tails = range(max(0, len(text) - longest), len(text))
        return [at for at in tails if any(name.startswith(text[at:]) for name in self._names)]


def _any_of(names: Iterable[str]) -> str:
    """A pattern for the longest of the names that matches; without names, for nothing."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    return "|".join(map(re.escape, longest_first)) or "(?!)"
