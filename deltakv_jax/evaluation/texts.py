"""Texts to measure on: a few by name, any other from a UTF-8 file."""

import dataclasses
import hashlib
from pathlib import Path

from deltakv_jax.errors import UserError
from deltakv_jax.training import corpus

NAMED = {"python-docs": corpus.python_docs, "python-code": corpus.python_code}
DEFAULT = "python-docs"


@dataclasses.dataclass(frozen=True)
class Text:
    """A text with the name and the hash that identify it in a result.

    Attributes:
      name: the name it was asked for by, or the file's own.
      content: the whole text, its newlines untouched.
      sha256: of its UTF-8 bytes, in hexadecimal.
    """

    name: str
    content: str
    sha256: str


def load_text(name: str) -> Text:
    """The held-out text that `name` names, or else the file at that path."""
    if name in NAMED:
        return _text(name, NAMED[name]().held_out.encode())
    return _text(Path(name).name, _read(Path(name)))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        known = ", ".join(NAMED)
        reason = error.strerror or "unreadable"
        raise UserError(f"--text {path}: {reason}; give a UTF-8 file or one of {known}") from None


def _text(name: str, data: bytes) -> Text:
    if not data:
        raise UserError(f"--text {name} is empty; give one of at least --ctx tokens")
    try:
        content = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"--text {name} is no UTF-8: byte {data[error.start]:#04x} at offset {error.start}"
        ) from None
    return Text(name, content, hashlib.sha256(data).hexdigest())
