"""Tensors by name out of one safetensors file or the shards that an index lists.

The library checks a header before it believes it: its length, that the tensors fill the rest of
the file without gaps, and that each is as long as its shape and type say.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from deltakv_jax.errors import UserError
from deltakv_jax.weights import native
from deltakv_jax.weights.fields import Fields, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_KINDS = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16"}
_LONGEST = 200  # characters of a tensor's name


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what it is, its values unread.

    Attributes:
      path: the file.
      shape: of the values.
      kind: "f64", "f32", "f16" or "bf16".
    """

    path: Path
    shape: tuple[int, ...]
    kind: str


def find_tensors(folder: Path) -> dict[str, Entry]:
    """The tensors of a folder, no values read.

    Raises:
      UserError: where files are missing or damaged, or index and shards disagree.
    """
    if (folder / SINGLE).exists():
        return _entries(folder / SINGLE)
    if not (folder / INDEX).exists():
        raise UserError(f"{folder} has no weights: expected {SINGLE} or {INDEX}")
    return _sharded(folder, Fields.read(folder / INDEX))


def read_tensor(name: str, entry: Entry) -> np.ndarray:
    """Reads one tensor's values in their own dtype; bfloat16 is that of ml_dtypes."""
    with _opened(entry.path) as file:
        return file.get_tensor(name)


def _sharded(folder: Path, index: Fields) -> dict[str, Entry]:
    places = index.below("weight_map").values
    if not places:
        raise UserError(f"{index.source}: weight_map is missing or empty")
    found: dict[str, Entry] = {}
    for shard in sorted({_shard_name(index, shard) for shard in places.values()}):
        for name, entry in _entries(folder / shard).items():
            if places.get(name) != shard:
                raise UserError(f"{index.source} does not place {name} in {shard}, which holds it")
            found[name] = entry
    _check_all_found(index, places, found)
    return found


def _shard_name(index: Fields, shard: object) -> str:
    if not isinstance(shard, str) or os.path.basename(shard) != shard or not shard.isprintable():
        raise UserError(f"{index.source}: {shown(shard)} is no file of the same folder")
    return shard


def _check_all_found(index: Fields, places: Mapping[str, str], found: Mapping[str, Entry]) -> None:
    for name, shard in places.items():
        if name not in found:
            raise UserError(
                f"{index.source} places {native.one_line(name)} in {shard}, which does not hold it"
            )


def _entries(path: Path) -> dict[str, Entry]:
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: _entry(path, name, part) for name, part in slices.items()}


def _entry(path: Path, name: str, part) -> Entry:
    if len(name) > _LONGEST or not name.isprintable():
        raise UserError(f"{path} is damaged: a tensor is called {native.one_line(name)}")
    stored = part.get_dtype()
    if stored not in _KINDS:
        known = ", ".join(_KINDS)
        raise UserError(f"{path}: {name} has type {stored}, supported are {known}")
    return Entry(path, tuple(part.get_shape()), _KINDS[stored])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    with native.reading(path):
        if not path.is_file():  # opening a pipe would wait for somebody to write into it
            raise UserError(f"{path}: no such file")
        with safe_open(path, framework="numpy") as file:
            yield file
