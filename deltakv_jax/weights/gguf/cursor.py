"""A reading place in a file that never leaves it: every length is checked before it is believed."""

import mmap
import struct
from typing import Any, NoReturn

from gguf.constants import GGUFValueType

from deltakv_jax.errors import UserError

MOST_ITEMS = 1 << 23
"""Keys, elements of arrays and tensors of one header; vocabularies have a few hundred thousand."""

_LONGEST_NAME = 256  # bytes of a key or a tensor's name; GGML's own limit is 64
_DEEPEST = 4  # arrays in arrays; no known file has any
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_NUMBERS = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: _U32,
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.UINT64: _U64,
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
    GGUFValueType.BOOL: struct.Struct("<?"),
}
_SMALLEST = {GGUFValueType.STRING: 8, GGUFValueType.ARRAY: 12}  # bytes of an empty one


class Cursor:
    """Reads a GGUF header from front to back.

    Attributes:
      source: the file, for errors.
      data: its bytes.
      at: the next byte to be read.
    """

    def __init__(self, source: str, data: mmap.mmap, at: int = 0):
        """Starts at a byte of the file."""
        self.source, self.data, self.at = source, data, at
        self._items = 0

    def fail(self, fault: str) -> NoReturn:
        """Raises the UserError of a damaged file."""
        raise UserError(f"{self.source} is damaged: {fault}")

    def take(self, size: int, what: str) -> int:
        """Moves behind the next `size` bytes and gives their offset; `what` names them."""
        start = self.at
        if size > len(self.data) - start:
            self.fail(
                f"{what} takes {size} bytes from byte {start} on, the file has {len(self.data)}"
            )
        self.at = start + size
        return start

    def u32(self, what: str) -> int:
        """The next number, of 4 bytes."""
        return _U32.unpack_from(self.data, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        """The next number, of 8 bytes."""
        return _U64.unpack_from(self.data, self.take(8, what))[0]

    def count(self, smallest: int, what: str) -> int:
        """The next number, of that many items that take at least `smallest` bytes each."""
        count = self.u64(f"the number of {what}")
        left = len(self.data) - self.at
        if count * smallest > left:
            self.fail(f"it claims {count} {what} and has {left} bytes for them")
        self._items += count
        if self._items > MOST_ITEMS:
            raise UserError(f"{self.source}: its header has more than {MOST_ITEMS} items")
        return count

    def text(self, what: str, longest: int | None = None) -> str:
        """The next string, of at most `longest` bytes."""
        size = self.u64(what)
        start = self.take(size, what)
        if longest is not None and size > longest:
            self.fail(f"{what} has {size} bytes, expected at most {longest}")
        try:
            return str(self.data[start : self.at], "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is no valid UTF-8")

    def name(self, what: str) -> str:
        """The next string, if it can be repeated in an error message."""
        name = self.text(what, _LONGEST_NAME)
        if not name or not name.isprintable():
            self.fail(f"{what} is {name[:40]!a}, expected printable characters")
        return name

    def kind(self, what: str) -> GGUFValueType:
        """The next number, as the type of a value."""
        number = self.u32(f"the type of {what}")
        try:
            return GGUFValueType(number)
        except ValueError:
            self.fail(f"{what} has the unknown type {number}")

    def skip(self, kind: GGUFValueType, what: str, depth: int = 0) -> None:
        """Moves behind the next value, checking all that reading it will believe."""
        if kind == GGUFValueType.STRING:
            self.take(self.u64(what), what)
        elif kind != GGUFValueType.ARRAY:
            self.take(_NUMBERS[kind].size, what)
        else:
            inner, count = self._array(what, depth)
            if inner in _NUMBERS:
                self.take(_NUMBERS[inner].size * count, what)
                return
            for _ in range(count):
                self.skip(inner, what, depth + 1)

    def value(self, kind: GGUFValueType, what: str, depth: int = 0) -> Any:
        """The next value: an int, float, bool or string, or a list of such."""
        if kind == GGUFValueType.STRING:
            return self.text(what)
        if kind != GGUFValueType.ARRAY:
            return self._numbers(kind, 1, what)[0]
        inner, count = self._array(what, depth)
        if inner in _NUMBERS:
            return list(self._numbers(inner, count, what))
        return [self.value(inner, what, depth + 1) for _ in range(count)]

    def _array(self, what: str, depth: int) -> tuple[GGUFValueType, int]:
        """The type and the number of an array's elements."""
        if depth >= _DEEPEST:
            self.fail(f"{what} nests arrays more than {_DEEPEST} deep")
        inner = self.kind(what)
        smallest = _SMALLEST[inner] if inner not in _NUMBERS else _NUMBERS[inner].size
        return inner, self.count(smallest, f"elements of {what}")

    def _numbers(self, kind: GGUFValueType, count: int, what: str) -> tuple[Any, ...]:
        form = struct.Struct(f"<{count}{_NUMBERS[kind].format[-1]}")
        return form.unpack_from(self.data, self.take(form.size, what))
