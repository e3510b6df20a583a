"""The batches of a run on disk, so that a run that is killed goes on where it stopped.

    FOLDER/record.json    what the run depends on, and the SHA-256 of each batch
    FOLDER/000008.npz     the batch that begins with chunk 8 (a `Measured`)

A batch is written first and recorded after, each file replaced whole: whatever moment a run is
killed at, the record names finished batches only. What is damaged later is moved aside with a
message and measured again.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation.files import write_atomically
from deltakv_jax.evaluation.results import Measured

FORMAT = "deltakv_jax run"
VERSION = 1

_RECORD = "record.json"
_OPTION = "checkpoint"


class Store:
    """The finished batches of one run; `open` makes or reopens one."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], hashes: dict[str, str], say):
        """Takes what `open` found."""
        self._folder, self._identity, self._hashes, self._say = folder, identity, hashes, say

    @classmethod
    def open(
        cls, folder: Path, identity: Mapping[str, Any], *, say: Callable[[str], None]
    ) -> "Store":
        """The store in `folder`: the one of an interrupted run, or a new one.

        Args:
          folder: made with the first batch, and whatever folders it lies in.
          identity: what the figures depend on, in JSON's types, under names that a user knows.
          say: told of whatever is damaged and moved aside.

        Raises:
          UserError: where `folder` holds a run that depends on something else.
        """
        record = _read_record(folder, say)
        if record is None:
            return cls(folder, identity, {}, say)
        _check_same(folder, record["identity"], identity)
        return cls(folder, identity, record["batches"], say)

    def batches(self) -> dict[int, Measured]:
        """The finished batches by the index of their first chunk; damaged ones are left out."""
        found = {}
        for name in sorted(self._hashes):
            try:
                found[int(name.removesuffix(".npz"))] = self._read(name)
            except (OSError, ValueError) as error:
                self._set_aside(name, error)
        return found

    def save(self, first: int, batch: Measured) -> None:
        """Keeps the batch whose first chunk has the index `first`."""
        buffer = io.BytesIO()
        np.savez(buffer, **batch._asdict())
        name, data = f"{first:06d}.npz", buffer.getvalue()
        self._make_folder()
        write_atomically(self._folder / name, data, _OPTION)
        self._hashes[name] = hashlib.sha256(data).hexdigest()
        self._write_record()

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"checkpoints in {self._folder}: {error.strerror}") from None

    def _read(self, name: str) -> Measured:
        data = (self._folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self._hashes[name]:
            raise ValueError("its bytes are not those that were written")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return Measured(**arrays)

    def _set_aside(self, name: str, error: Exception) -> None:
        del self._hashes[name]
        self._write_record()
        reason = getattr(error, "strerror", None) or error
        aside = move_aside(self._folder / name)
        where = "" if aside is None else f", moved to {aside.name}"
        self._say(f"checkpoint {self._folder / name} is damaged ({reason}){where}; measuring again")

    def _write_record(self) -> None:
        record = {
            "format": FORMAT,
            "version": VERSION,
            "identity": self._identity,
            "batches": self._hashes,
        }
        content = json.dumps(record, indent=2) + "\n"
        write_atomically(self._folder / _RECORD, content.encode(), _OPTION)


def holds_run(folder: Path) -> bool:
    """Whether an interrupted run left its checkpoints in `folder` or below."""
    return folder.is_dir() and any(folder.rglob(_RECORD))


def discard(folder: Path) -> None:
    """Removes the checkpoints of a run that has ended."""
    shutil.rmtree(folder, ignore_errors=True)


def move_aside(path: Path) -> Path | None:
    """Gives `path` a free name that ends in `.damaged-N`; None where it does not exist."""
    if not path.exists():
        return None
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.rename(aside)


def _read_record(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    path = folder / _RECORD
    if not path.exists():
        return None
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        aside = move_aside(path) or path
        say(f"checkpoint {path} is damaged ({error}), moved to {aside.name}; starting anew")
        return None


def _checked(record: Any) -> dict[str, Any]:
    """A record that has what it must have; ValueError otherwise."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f'no record of a run, which says "format": "{FORMAT}"')
    if record.get("version") != VERSION:
        raise ValueError(f"version {record.get('version')}, expected {VERSION}")
    parts = [record.get(name) for name in ("identity", "batches")]
    names = isinstance(parts[1], dict) and all(
        name.removesuffix(".npz").isdecimal() and isinstance(digest, str)
        for name, digest in parts[1].items()
    )
    if not isinstance(parts[0], dict) or not names:
        raise ValueError("identity or batches are missing")
    return record


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    new = json.loads(json.dumps(new))
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if differing:
        what = "; ".join(
            f"{name} was {_show(old, name)}, is {_show(new, name)}" for name in differing
        )
        raise UserError(f"cannot go on with the run in {folder}: {what}")


def _show(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return " ".join(value) if isinstance(value, list) else json.dumps(value)
