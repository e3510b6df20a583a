"""The wire format of protocol buffers, as much of it as SentencePiece models need.

The `protobuf` package would do, if the classes that come with sentencepiece did not ask for the
very newest release of it.
"""

import struct
from collections.abc import Iterator

Value = int | float | bytes


def fields(message: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a message: number and value, a float for four bytes.

    Raises:
      ValueError: where the message is cut short or holds what no message does.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            size, at = _varint(message, at)
            value, at = _slice(message, at, size)
        elif kind in (1, 5):
            value, at = _slice(message, at, 8 if kind == 1 else 4)
            value = value if kind == 1 else struct.unpack("<f", value)[0]
        else:
            raise ValueError(f"a field of wire type {kind}")
        yield key >> 3, value


def field(number: int, value: Value) -> bytes:
    """One field of a message; a float takes four bytes."""
    if isinstance(value, bytes):
        return _to_varint(number << 3 | 2) + _to_varint(len(value)) + value
    if isinstance(value, float):
        return _to_varint(number << 3 | 5) + struct.pack("<f", value)
    return _to_varint(number << 3) + _to_varint(value)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at == len(message):
            raise ValueError("it is cut short")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _slice(message: bytes, at: int, size: int) -> tuple[bytes, int]:
    if size > len(message) - at:
        raise ValueError(f"a field of {size} bytes where {len(message) - at} are left")
    return message[at : at + size], at + size


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
