"""The tensors of a model that lies in one GGUF file or in several parts, memory-mapped."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deltakv_jax.errors import UserError
from deltakv_jax.weights.fields import Fields
from deltakv_jax.weights.gguf.walk import Header, Metadata, TensorInfo, walk

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """A model's tensors and metadata, joined from all its parts.

    Attributes:
      path: the file, the first one of several.
      metadata: of that file, which has all of it.
      tensors: by name.
    """

    path: Path
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]
    _headers: Mapping[str, Header]  # of the part that each tensor lies in

    @property
    def name(self) -> str:
        """The file's name without its ending and the number of its part."""
        match = _PART.fullmatch(self.path.name)
        return match["stem"] if match else self.path.stem

    def path_of(self, tensor: str) -> Path:
        """The part that a tensor lies in."""
        return self._headers[tensor].path

    def bytes_of(self, tensor: str) -> np.ndarray:
        """The stored bytes of a tensor, uint8 [size], a view of the mapped file."""
        info, header = self.tensors[tensor], self._headers[tensor]
        return np.frombuffer(header.data, np.uint8, info.size, info.start)


def open_file(path: Path) -> GGUFFile:
    """Opens a file, and with the first part of several the others beside it.

    Raises:
      UserError: where a file is missing or damaged, or the parts do not belong together.
    """
    headers = _parts(walk(path))
    tensors: dict[str, TensorInfo] = {}
    holders: dict[str, Header] = {}
    for header in headers:
        for name, info in header.tensors.items():
            if name in tensors:
                raise UserError(f"{header.path} has {name}, as {holders[name].path} does")
            tensors[name], holders[name] = info, header
    _check_total(headers[0], len(tensors))
    return GGUFFile(path, headers[0].metadata, tensors, holders)


def split_fields(header: Header) -> Fields:
    """What a file's metadata says of its being a part."""
    names = [name for name in (_NUMBER, _COUNT, _TENSORS) if name in header.metadata]
    return Fields(str(header.path), {name: header.metadata[name] for name in names})


def _parts(first: Header) -> list[Header]:
    fields = split_fields(first)
    count = fields.get(_COUNT, int, 1)
    if count <= 1:
        return [first]
    match = _PART.fullmatch(first.path.name)
    number = fields.get(_NUMBER, int)
    if number or not match or (int(match["number"]), int(match["count"])) != (1, count):
        raise UserError(
            f"{first.path} is part {number + 1} of {count}: give the first part, named "
            f"NAME-00001-of-{count:05}.gguf, the others beside it"
        )
    names = [f"{match['stem']}-{i + 1:05}-of-{count:05}.gguf" for i in range(1, count)]
    others = [walk(first.path.with_name(name)) for name in names]
    for i, header in enumerate(others, 1):
        _check_part(header, i, count)
    return [first, *others]


def _check_part(header: Header, number: int, count: int) -> None:
    fields = split_fields(header)
    for name, expected in ((_NUMBER, number), (_COUNT, count)):
        if fields.get(name, int) != expected:
            got = fields.get(name, int)
            raise UserError(f"{header.path}: {name} is {got}, expected {expected}")


def _check_total(first: Header, got: int) -> None:
    expected = split_fields(first).get(_TENSORS, int, got)
    if got != expected:
        raise UserError(f"{first.path}: all parts have {got} tensors, expected {expected}")
