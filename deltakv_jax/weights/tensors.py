"""Tensors by name out of one safetensors file or the shards that an index lists."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from deltakv_jax.errors import UserError
from deltakv_jax.weights.fields import Fields

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_TYPES = ("F64", "F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what it is, its values unread."""

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
    """Reads one tensor's values."""
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
    if not isinstance(shard, str) or os.path.basename(shard) != shard:
        raise UserError(f"{index.source}: {json.dumps(shard)} is no file of the same folder")
    return shard


def _check_all_found(index: Fields, places: Mapping[str, str], found: Mapping[str, Entry]) -> None:
    for name, shard in places.items():
        if name not in found:
            raise UserError(f"{index.source} places {name} in {shard}, which does not hold it")


def _entries(path: Path) -> dict[str, Entry]:
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        entries = {
            name: Entry(path, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        }
    for name, entry in entries.items():
        if entry.kind not in _TYPES:
            known = ", ".join(_TYPES)
            raise UserError(f"{path}: {name} has type {entry.kind}, supported are {known}")
    return entries


@contextlib.contextmanager
def _opened(path: Path):
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
