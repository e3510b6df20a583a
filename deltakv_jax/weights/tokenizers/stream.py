"""Text of one token at a time, in whole characters."""

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"
_UNFINISHED_IDS = 3  # at the most: a character has up to four bytes
_PATIENCE = 16  # ids after which what is no whole character is taken for invalid UTF-8


class Stream:
    """Decodes one id at a time into whole characters.

    A character may take several tokens, and some decoders treat the first token of a text
    specially. So ids are decoded together with those of the characters before them, and only what
    this adds is returned.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], after: Sequence[int]):
        """Starts behind the ids `after`, whose text is not returned."""
        self._decode = decode
        self._window = list(after)
        self._known = len(self._window)  # ids at the window's start whose text was returned

    def push(self, token: int) -> str:
        """The characters that this id completes; "" while the last one is unfinished.

        Invalid UTF-8 comes as replacement characters, some ids late.
        """
        self._window.append(token)
        new = self._new_text()
        if not new.endswith(_UNFINISHED):
            return self._returned(new)
        return "" if len(self._window) - self._known < _PATIENCE else self._all_but_the_last()

    def flush(self) -> str:
        """What is left at the end: an unfinished character, as replacement characters."""
        return self._returned(self._new_text())

    def _all_but_the_last(self) -> str:
        """The text of all ids but those in which a character may have begun."""
        begun = self._window[-_UNFINISHED_IDS:]
        del self._window[-_UNFINISHED_IDS:]
        text = self._returned(self._new_text())
        self._window += begun
        return text

    def _new_text(self) -> str:
        known = self._decode(self._window[: self._known])
        return self._decode(self._window)[len(known) :]

    def _returned(self, new: str) -> str:
        """Moves the window up to the ids of `new`, which start and end between characters."""
        if new:
            self._window = self._window[self._known :]
            self._known = len(self._window)
        return new
