"""Text that every CPython carries: the topics of `help()` and the standard library's sources.

Whether a document is held out is decided by its name alone, so that a newer Python, whose
documents differ a little, never shows a model what it was not trained on as if it had been, nor
the other way round.
"""

import hashlib
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

HELD_OUT_DOCS = 1 / 6
HELD_OUT_CODE = 1 / 20

# Which of the equally good splits: one that leaves the long topics made of others to training.
_SALT = "4"

# Not prose or code of the library: its tests, other programs, what pip put there, what was
# generated for one machine, tables, and the topics themselves.
_LEFT_OUT = {
    "config",
    "dist-packages",
    "encodings",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}


class Corpus(NamedTuple):
    """What to train on and what no training has seen.

    Attributes:
      train: documents, in order of their names.
      held_out: one text, the documents in order of their names with an empty line between them.
    """

    train: tuple[str, ...]
    held_out: str


def python_docs() -> Corpus:
    """The topics of `pydoc_data`.

    Topics repeat one another ("compound" holds all of "while"): a training topic goes without the
    paragraphs that stand in a held-out one.
    """
    from pydoc_data import topics

    corpus = split(topics.topics, HELD_OUT_DOCS)
    seen = set(_paragraphs(corpus.held_out))
    train = ("\n\n".join(p for p in _paragraphs(text) if p not in seen) for text in corpus.train)
    return Corpus(tuple(text for text in train if text), corpus.held_out)


def python_code() -> Corpus:
    """The standard library's modules in Python."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = {_module_name(root, path): path for path in root.rglob("*.py")}
    kept = {name: path for name, path in paths.items() if not _is_left_out(name)}
    return split({name: _read(path) for name, path in kept.items()}, HELD_OUT_CODE)


def split(documents: Mapping[str, str], share: float) -> Corpus:
    """Holds out about `share` of the documents, by a hash of their names."""
    train, held_out = [], []
    for name, text in sorted(documents.items()):
        if text.strip():
            (held_out if is_held_out(name, share) else train).append(text.strip() + "\n")
    return Corpus(tuple(train), "\n".join(held_out))


def is_held_out(name: str, share: float) -> bool:
    """Whether a document of this name is held out; the same on every machine and Python."""
    digest = hashlib.sha256(f"{_SALT}:{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def _paragraphs(text: str) -> list[str]:
    return [part for part in text.strip().split("\n\n") if part.strip()]


def _module_name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def _is_left_out(name: str) -> bool:
    parts = name.split(".")
    generated = parts[-1].startswith(("_sysconfigdata", "sitecustomize"))
    return generated or parts[0].startswith("config-") or not _LEFT_OUT.isdisjoint(parts)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="ignore")
