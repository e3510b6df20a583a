"""A cache on disk: the arrays as an orbax checkpoint, and a record of what they are.

    FOLDER/3/record.json   format version, model, specs, sizes, the SHA-256 of every other file
    FOLDER/3/arrays/       orbax

Whole or absent: a version is written beside the one that stands and renamed when every byte of it
is on disk; only then is the old one removed. Whatever is damaged later is refused, not read: the
record is checked first, then the files, and only then does orbax see them.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array

from deltakv_jax.cache.state import KVCache, make_cache
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError

FORMAT = "deltakv_jax cache"
VERSION = 1

_RECORD = "record.json"
_ARRAYS = "arrays"
_PARTIAL = ".partial-"


def save_cache(
    folder: Path,
    cache: KVCache,
    *,
    model: Mapping[str, Any],
    extra: Mapping[str, Array] | None = None,
) -> None:
    """Saves `cache` in `folder`, in place of the cache that it may hold.

    Args:
      folder: new, empty, or one that this function wrote.
      cache: what to save.
      model: what makes caches of two models differ, in JSON's types. Loading compares it.
      extra: arrays that go with the cache, by name.

    Raises:
      UserError: where `folder` holds anything else, or cannot be written.
    """
    arrays = _named_arrays(cache) | {f"extra.{name}": x for name, x in (extra or {}).items()}
    check_folder(folder)
    with _one_line(f"cannot save a cache in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        old = list(folder.iterdir())
        number = max(_versions(folder), default=-1) + 1
        with _scratch(folder) as version:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(version.absolute() / _ARRAYS, arrays)
            _write_record(version, _describe(cache, arrays, model))
            version.rename(folder / str(number))
        _sync(folder)
        for path in old:
            with _scratch(folder) as partial:  # a version lacks nothing as long as it has its name
                path.rename(partial / path.name)


def load_cache(folder: Path, *, model: Mapping[str, Any]) -> tuple[KVCache, dict[str, Array]]:
    """The cache and the extra arrays that `save_cache` put into `folder`, bit for bit.

    Raises:
      UserError: where there is none, or it is damaged, of another format version, or of a model
        other than `model`.
    """
    with _one_line(f"the cache in {folder} is damaged"):
        versions = _versions(folder) if folder.is_dir() else []
    if not versions:
        raise UserError(f"no saved cache in {folder}")
    version = folder / str(max(versions))
    with _one_line(f"the cache in {folder} is damaged"):
        record = _read_record(version)
        _check_files(version, record["files"])
    _check_model(folder, record["model"], dict(model))
    with _one_line(f"the cache in {folder} is damaged"):
        return _restore(version, record)


def check_folder(folder: Path) -> None:
    """Raises UserError unless `save_cache` may write to `folder`."""
    if not folder.exists():
        return
    ours = lambda path: path.name.startswith(_PARTIAL) or (path / _RECORD).is_file()
    if not folder.is_dir() or not all(ours(path) for path in folder.iterdir()):
        raise UserError(f"{folder} exists and is not a saved cache; name a new folder")


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
    """A new folder whose name says that it is not a version; gone at the end, or renamed."""
    path = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _versions(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def _named_arrays(cache: KVCache) -> dict[str, Array]:
    """Every leaf by its path, as in `stacks.0.k.codes`: names that stay when the order changes."""
    leaves = jax.tree_util.tree_leaves_with_path(cache)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _describe(cache: KVCache, arrays: dict[str, Array], model: Mapping[str, Any]) -> dict:
    batch, kv_heads = jax.tree.leaves(cache.stacks)[0].shape[1:3]
    return {
        "model": dict(model),
        "specs": [str(cache.layout.kinds[kind]) for kind in cache.layout.kind_of],
        "batch": batch,
        "kv_heads": kv_heads,
        "head_dim": cache.head_dim,
        "capacity": cache.capacity,
        "arrays": {name: [list(x.shape), str(x.dtype)] for name, x in arrays.items()},
    }


def _write_record(version: Path, record: dict) -> None:
    files = (path for path in version.rglob("*") if path.is_file())
    record["files"] = {str(path.relative_to(version)): _digest(path) for path in sorted(files)}
    head = {"format": FORMAT, "version": VERSION, "sha256": _digest_of(record)}
    with (version / _RECORD).open("w") as file:
        json.dump(head | record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _read_record(version: Path) -> dict:
    record = json.loads((version / _RECORD).read_text())
    if record.pop("format") != FORMAT:
        raise ValueError(f"{_RECORD} is not that of a cache")
    if (found := record.pop("version")) != VERSION:
        raise UserError(
            f"the cache in {version.parent} has format version {found}, expected {VERSION}"
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


def _check_model(folder: Path, saved: dict, given: dict) -> None:
    for name in saved | given:
        was, wanted = saved.get(name), given.get(name)
        if was != wanted:
            raise UserError(
                f"the cache in {folder} is of another model: {name} is {was} there, {wanted} here"
            )


def _restore(version: Path, record: dict) -> tuple[KVCache, dict[str, Array]]:
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=where)
        for name, (shape, dtype) in record["arrays"].items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(version.absolute() / _ARRAYS, shapes)
    template = jax.eval_shape(lambda: _empty(record))
    names = _named_arrays(template)
    cache = jax.tree.unflatten(jax.tree.structure(template), [arrays.pop(name) for name in names])
    return cache, {name.removeprefix("extra."): x for name, x in arrays.items()}


def _empty(record: dict) -> KVCache:
    return make_cache(
        [parse_spec(spec) for spec in record["specs"]],
        layers=len(record["specs"]),
        kv_heads=record["kv_heads"],
        head_dim=record["head_dim"],
        capacity=record["capacity"],
        batch=record["batch"],
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sync(folder: Path) -> None:
    """Waits until the names in `folder` are on disk, the rename among them."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
