"""A bounded walk over the header of one GGUF file.

Every count, length, offset, alignment and nesting is checked against the size of the file before
anything follows it, because the `gguf` package's own reader loops or allocates on hostile files.
The layout is that of versions 2 and 3: magic, version, counts, key-value pairs, tensor infos,
padding, data; all little-endian.
"""

import dataclasses
import math
import mmap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from gguf.constants import (
    GGML_QUANT_SIZES,
    GGUF_DEFAULT_ALIGNMENT,
    GGMLQuantizationType,
    GGUFValueType,
)

from deltakv_jax.errors import UserError
from deltakv_jax.weights.gguf.cursor import Cursor
from deltakv_jax.weights.native import reading

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_SMALLEST_PAIR = 8 + 1 + 4 + 1  # bytes of a key of one letter, a type and one byte
_SMALLEST_INFO = 8 + 1 + 4 + 8 + 4 + 8  # of a name of one letter and one dimension


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is, its values unread.

    Attributes:
      name: in the file.
      type: how its values are stored.
      shape: of the values, row-major: the file's dimensions from last to first.
      start: offset of its first byte in the file.
      size: its bytes.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size: int


class Metadata(Mapping[str, Any]):
    """The key-value pairs of a header, each value read when it is asked for.

    A value is an int, float, bool or string, or a list of such. Asking raises UserError for a
    string that is no UTF-8.
    """

    def __init__(
        self, source: str, data: mmap.mmap, places: Mapping[str, tuple[GGUFValueType, int]]
    ):
        """Takes the type and the offset of each key's value, already walked over."""
        self._source, self._data, self._places = source, data, places

    def __getitem__(self, key: str) -> Any:
        kind, at = self._places[key]
        return Cursor(self._source, self._data, at).value(kind, key)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def kind(self, key: str) -> GGUFValueType:
        """The type of a key's value."""
        return self._places[key][0]


@dataclasses.dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
      path: the file.
      data: its bytes, mapped.
      metadata: its key-value pairs.
      tensors: by name, in the order of the file; all lie within it and none overlap.
    """

    path: Path
    data: mmap.mmap
    metadata: Metadata
    tensors: dict[str, TensorInfo]


def walk(path: Path) -> Header:
    """Maps a file and reads its header.

    Raises:
      UserError: one line that names the file and what is wrong with it.
    """
    cursor = Cursor(str(path), _mapped(path))
    _check_magic(cursor)
    _check_version(cursor)
    tensors = cursor.count(_SMALLEST_INFO, "tensors")
    metadata = _metadata(cursor, cursor.count(_SMALLEST_PAIR, "metadata values"))
    infos = [_info(cursor) for _ in range(tensors)]
    return Header(path, cursor.data, metadata, _placed(cursor, infos, _alignment(cursor, metadata)))


def _mapped(path: Path) -> mmap.mmap:
    with reading(path):
        if not path.is_file():  # opening a pipe would wait for somebody to write into it
            raise UserError(f"{path}: no such file")
        if not path.stat().st_size:
            raise UserError(f"{path} is no GGUF file: it is empty")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check_magic(cursor: Cursor) -> None:
    magic = cursor.data[:4]
    if magic != _MAGIC:
        raise UserError(
            f"{cursor.source} is no GGUF file: it starts with {magic!r}, not {_MAGIC!r}"
        )
    cursor.take(4, "the magic")


def _check_version(cursor: Cursor) -> None:
    version = cursor.u32("the version")
    if version and not version & 0xFFFF:
        raise UserError(
            f"{cursor.source} is a big-endian GGUF file, only little-endian is supported"
        )
    if version not in _VERSIONS:
        raise UserError(f"{cursor.source} has GGUF version {version}, supported are 2 and 3")


def _metadata(cursor: Cursor, count: int) -> Metadata:
    places: dict[str, tuple[GGUFValueType, int]] = {}
    for number in range(count):
        key = cursor.name(f"key {number}")
        if key in places:
            cursor.fail(f"it has {key} twice")
        kind = cursor.kind(key)
        places[key] = kind, cursor.at
        cursor.skip(kind, key)
    return Metadata(cursor.source, cursor.data, places)


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    key = "general.alignment"
    if key not in metadata:
        return GGUF_DEFAULT_ALIGNMENT
    value = metadata[key]
    if metadata.kind(key) != GGUFValueType.UINT32 or value.bit_count() != 1:
        shown = value if isinstance(value, int | float) else type(value).__name__
        cursor.fail(f"{key} is {shown}, expected a power of two as uint32")
    return value


def _info(cursor: Cursor) -> TensorInfo:
    """The next tensor's info, its start still counted from the beginning of the data."""
    name = cursor.name("a tensor's name")
    dimensions = cursor.u32(name)
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        cursor.fail(f"{name} has {dimensions} dimensions, expected 1 to {_MOST_DIMENSIONS}")
    shape = tuple(reversed([cursor.u64(name) for _ in range(dimensions)]))
    type_ = _type(cursor, name)
    return TensorInfo(name, type_, shape, cursor.u64(name), _size(cursor, name, type_, shape))


def _type(cursor: Cursor, name: str) -> GGMLQuantizationType:
    number = cursor.u32(name)
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        raise UserError(f"{cursor.source}: {name} has the unknown type {number}") from None


def _size(cursor: Cursor, name: str, type_: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    """The bytes of a tensor."""
    block, block_bytes = GGML_QUANT_SIZES[type_]
    if 0 in shape or math.prod(shape) * block_bytes > len(cursor.data) * block:
        cursor.fail(f"{name} has shape {list(shape)} in a file of {len(cursor.data)} bytes")
    if shape[-1] % block:
        cursor.fail(
            f"{name} has shape {list(shape)}, {type_.name} needs rows of a multiple of {block}"
        )
    return math.prod(shape) // block * block_bytes


def _placed(cursor: Cursor, infos: list[TensorInfo], alignment: int) -> dict[str, TensorInfo]:
    """The tensors by name, their starts now counted from the beginning of the file."""
    data = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in tensors:
            cursor.fail(f"it has the tensor {info.name} twice")
        if info.start % alignment:
            cursor.fail(f"{info.name} starts at {info.start}, no multiple of {alignment}")
        tensors[info.name] = dataclasses.replace(info, start=data + info.start)
    _check_places(cursor, list(tensors.values()))
    return tensors


def _check_places(cursor: Cursor, infos: list[TensorInfo]) -> None:
    """Each tensor ends before the next one starts, and the last one before the file does."""
    infos.sort(key=lambda info: info.start)
    for info, following in pairwise(infos):
        if info.start + info.size > following.start:
            cursor.fail(f"{info.name} and {following.name} overlap")
    if infos and infos[-1].start + infos[-1].size > len(cursor.data):
        last = infos[-1]
        cursor.fail(
            f"{last.name} takes {last.size} bytes from byte {last.start} on, the file has "
            f"{len(cursor.data)}"
        )
