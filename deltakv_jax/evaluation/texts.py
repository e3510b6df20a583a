"""Texts to measure on: a few by name, any other from a UTF-8 file."""

import dataclasses
import hashlib
from pathlib import Path

from deltakv_jax.errors import UserError
from deltakv_jax.training import corpus

WIKITEXT = "Salesforce/wikitext", "wikitext-2-raw-v1"


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
    """The text that `name` names, or else the file at that path."""
    if name in NAMED:
        return _text(name, NAMED[name]().encode())
    return _text(Path(name).name, _read(Path(name)))


def _wikitext_2() -> str:
    """WikiText-2's test split, byte for byte the file wiki.test.raw that it was made of."""
    # only now: it takes seconds, and few runs need it
    import datasets
    from datasets.config import HF_DATASETS_CACHE

    try:
        rows = datasets.load_dataset(*WIKITEXT, split="test")["text"]
    except Exception as error:  # whatever the network, the hub and the cache raise
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(
            f"--text wikitext-2: {' '.join(WIKITEXT)} is not in the cache "
            f"({HF_DATASETS_CACHE}) and cannot be fetched: {reason}; "
            "give the path of a file wiki.test.raw instead"
        ) from None
    return _joined(rows)


def _joined(rows: list[str]) -> str:
    """The file of which the dataset holds each line, the blank ones (a space there) emptied."""
    return "".join(row or " \n" for row in rows)


NAMED = {
    "python-docs": lambda: corpus.python_docs().held_out,
    "python-code": lambda: corpus.python_code().held_out,
    "wikitext-2": _wikitext_2,
}
DEFAULT = "python-docs"


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
