"""The one way into native readers: whatever they raise on a damaged file becomes a `UserError`.

Libraries in C and Rust raise what they like, and a Rust panic reaches Python as an exception that
is no `Exception` at all.
"""

import contextlib
from collections.abc import Iterator

from deltakv_jax.errors import UserError

_NOT_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit)
_LONGEST = 200  # characters of a library's message that are repeated


@contextlib.contextmanager
def reading(source: object) -> Iterator[None]:
    """Calls of a native reader stand inside; `source` is the file that it reads.

    Raises:
      UserError: one line that names `source`, where the reader fails in any way, a panic included.
        A UserError from inside passes as it is.
    """
    try:
        yield
    except (UserError, *_NOT_OURS):
        raise
    except MemoryError:
        raise UserError(f"{source}: reading it takes more memory than there is") from None
    except OSError as error:
        raise UserError(f"{source}: {one_line(error.strerror or error)}") from None
    except BaseException as error:  # panics derive from BaseException
        raise UserError(f"{source} is damaged: {one_line(error)}") from None


def one_line(message: object) -> str:
    """The text of a library's message, or of its exception, fit for one line."""
    text = " ".join(str(message).split()) or type(message).__name__
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
