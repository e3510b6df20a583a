"""Arrays on disk with a record of what they are, in a folder of their own: caches and models.

    FOLDER/3/record.json   kind, format version, what was saved, the SHA-256 of every other file
    FOLDER/3/arrays/       orbax
    FOLDER/3/…             what else belongs to it

Whole or absent: a version is written beside the one that stands and renamed when every byte of it
is on disk; only then is the old one removed. Whatever is damaged later is refused, not read: the
record is checked first, then the files, and only then does orbax see them. Orbax itself would not
see all damage: it keeps no checksums of an array's bytes. To compute them takes a third of the time
that orbax takes to read the arrays.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Array

from deltakv_jax.errors import UserError

_RECORD = "record.json"
_ARRAYS = "arrays"
_PARTIAL = ".partial-"
_RANDOM = 8  # letters that `tempfile` adds
_CHUNK = 1 << 26  # bytes of an array that are compressed, or expanded, at a time by one thread
_GB = 10**9


@dataclasses.dataclass(frozen=True)
class Kind:
    """What such a folder holds.

    Attributes:
      name: "cache" or "model", for records and errors.
      version: of the record's format.
    """

    name: str
    version: int


def save(
    folder: Path,
    kind: Kind,
    arrays: Mapping[str, Array],
    record: Mapping[str, Any],
    write: Callable[[Path], None] = lambda _: None,
) -> None:
    """Saves arrays in `folder`, in place of the version that it may hold.

    Args:
      folder: new, empty, or one that this function wrote for the same kind.
      kind: what they are.
      arrays: by name.
      record: what else is to be known of them, in JSON's types.
      write: writes more files into the folder that it is given.

    Raises:
      UserError: where `folder` holds anything else, or cannot be written.
    """
    check_folder(folder, kind)
    with _one_line(f"cannot save a {kind.name} in {folder}"):
        first = jax.process_index() == 0  # which alone does what is not done by shards
        if first:
            folder.mkdir(parents=True, exist_ok=True)
        with _scratch(folder) as version:
            if first:
                write(version)
            _write_arrays(version / _ARRAYS, arrays)
            if first:
                kinds = {name: [list(x.shape), str(x.dtype)] for name, x in arrays.items()}
                _write_record(version, kind, {**record, "arrays": kinds})
                _replace(folder, version)
        multihost_utils.sync_global_devices("saved")


def _replace(folder: Path, version: Path) -> None:
    """Makes `version` that of `folder`, and only then removes what was there."""
    old = [path for path in folder.iterdir() if path != version]
    version.rename(folder / str(max(_versions(folder), default=-1) + 1))
    _sync(folder)
    for path in old:
        with _scratch_of_one(folder) as partial:  # a version lacks nothing while it has its name
            path.rename(partial / path.name)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A version that is there.

    Attributes:
      path: its folder.
      record: what `save` was given, which is as it was written; and under "arrays" the shape and
        the dtype of each array.
    """

    path: Path
    record: Mapping[str, Any]

    def arrays(self, where: Callable[[str, int], Sharding] | None = None) -> dict[str, Array]:
        """The arrays, bit for bit, after a check of every file.

        Args:
          where: of an array's name and its number of axes, where it goes straight to; None for the
            default device.
        """
        _check_files(self.path, self.record["files"])
        here = SingleDeviceSharding(jax.local_devices()[0])
        where = where or (lambda name, ndim: here)
        shapes = {
            name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where(name, len(shape)))
            for name, (shape, dtype) in self.record["arrays"].items()
        }
        with _orbax(shapes) as checkpointer:
            args = ocp.args.StandardRestore(shapes)
            return checkpointer.restore(self.path.absolute() / _ARRAYS, args=args)


def open_saved(folder: Path, kind: Kind) -> Saved:
    """The version that `save` put into `folder` last, its record checked.

    Raises:
      UserError: where there is none, or its record is damaged or of another format version.
    """
    with reading(folder, kind):
        versions = _versions(folder) if folder.is_dir() else []
    if not versions:
        raise UserError(f"no saved {kind.name} in {folder}")
    version = folder / str(max(versions))
    with reading(folder, kind):
        return Saved(version, _read_record(version, kind))


def is_saved(folder: Path) -> bool:
    """Whether `save` has been at work in `folder`, whatever is there now."""
    try:
        return any(map(_is_version, folder.iterdir()))
    except (OSError, ValueError):  # no folder, or none that may be read
        return False


def check_folder(folder: Path, kind: Kind) -> None:
    """Raises UserError unless `save` may write to `folder`."""
    with _one_line(f"cannot save a {kind.name} in {folder}"):
        if folder.exists() and not _holds_only(folder, kind):
            raise UserError(f"{folder} exists and is not a saved {kind.name}; name a new folder")
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise NotADirectoryError(f"{there} is no folder to write to")


@contextlib.contextmanager
def reading(folder: Path, kind: Kind) -> Iterator[None]:
    """Turns whatever goes wrong within into a UserError: the folder is damaged."""
    with _one_line(f"the {kind.name} in {folder} is damaged"):
        yield


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turns whatever goes wrong within into a UserError; its readers raise what they please."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise UserError(f"{what}: {reason}") from error


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """The same new folder for every process, made and removed by the first one."""
    if jax.process_index() == 0:
        with _scratch_of_one(folder) as path:
            yield folder / _told(path.name)
    else:
        yield folder / _told(_PARTIAL + _RANDOM * " ")


@contextlib.contextmanager
def _scratch_of_one(folder: Path) -> Iterator[Path]:
    """A new folder whose name says that it is not a version; gone at the end, or renamed."""
    path = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _told(name: str) -> str:
    """The name that the first process has, which is as long in all of them."""
    if jax.process_count() == 1:
        return name
    letters = np.frombuffer(name.encode(), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(letters)).tobytes().decode()


def _versions(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def _is_version(path: Path) -> bool:
    return path.name.isdecimal() or path.name.startswith(_PARTIAL)


def _holds_only(folder: Path, kind: Kind) -> bool:
    return folder.is_dir() and all(_is_ours(path, kind) for path in folder.iterdir())


def _is_ours(path: Path, kind: Kind) -> bool:
    if path.name.startswith(_PARTIAL):
        return True
    try:
        return json.loads((path / _RECORD).read_text())["format"] == _format(kind)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _format(kind: Kind) -> str:
    return f"deltakv_jax {kind.name}"


def _orbax(arrays: Mapping[str, Any]) -> ocp.Checkpointer:
    """Orbax with few of the arrays at work at a time: it holds each of those twice."""
    largest = max(x.size * x.dtype.itemsize for x in arrays.values())
    limit = largest // _GB + 1
    handler = ocp.StandardCheckpointHandler(save_concurrent_gb=limit, restore_concurrent_gb=limit)
    return ocp.Checkpointer(handler)


def _write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    chunks = {name: ocp.SaveArgs(chunk_byte_size=_CHUNK) for name in arrays}
    with _orbax(arrays) as checkpointer:
        args = ocp.args.StandardSave(dict(arrays), save_args=chunks)
        checkpointer.save(path.absolute(), args=args)


def _write_record(version: Path, kind: Kind, record: dict) -> None:
    paths = sorted(version.rglob("*"))
    files = {str(path.relative_to(version)): _digest(path) for path in paths if path.is_file()}
    record["files"] = files
    head = {"format": _format(kind), "version": kind.version, "sha256": _digest_of(record)}
    (version / _RECORD).write_text(json.dumps(head | record, indent=1))
    for path in (*paths, version / _RECORD, version):
        _sync(path)


def _read_record(version: Path, kind: Kind) -> dict:
    record = json.loads((version / _RECORD).read_text())
    if record.pop("format") != _format(kind):
        raise ValueError(f"{_RECORD} is not that of a {kind.name}")
    if (found := record.pop("version")) != kind.version:
        raise UserError(
            f"the {kind.name} in {version.parent} has format version {found}, "
            f"expected {kind.version}"
        )
    if record.pop("sha256") != _digest_of(record):
        raise ValueError(f"{_RECORD} is not as it was written")
    return record


def _check_files(version: Path, files: dict[str, str]) -> None:
    for name, digest in files.items():
        if not (version / name).is_file():
            raise FileNotFoundError(f"{name} is missing")
        if _digest(version / name) != digest:
            raise ValueError(f"{name} is not as it was written")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file is on disk, or the names in a folder, a rename among them."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
