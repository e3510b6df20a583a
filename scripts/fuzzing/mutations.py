"""Mutations of files: bytes flipped, overwritten, cut, removed, repeated and spliced."""

import random as random_numbers
import struct
from collections.abc import Callable, Sequence

_COUNTS = (1, 1, 1, 2, 4)  # mutations of one file, each as likely

_NUMBERS = (
    0,
    1,
    3,
    31,
    127,
    128,
    255,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
_TEXTS = (
    *(
        b"-1",
        b"0",
        b"99999999999999999999",
        b"1e999",
        b"null",
        b"true",
        b"{}",
        b"[]",
        b'""',
        b'"x"',
    ),
    *(b"[" * 3000, b'{"a":' * 3000, b"../", b"/dev/zero", b"\xff", b"\x00", b"\\ud800", b"\n"),
)
_FLOATS = tuple(struct.pack("<f", value) for value in (float("nan"), float("inf"), -1.0, 1e38))
WORDS = (
    *(struct.pack("<Q", number) for number in _NUMBERS),
    *(struct.pack("<Q", number)[:4] for number in _NUMBERS),
    *(struct.pack("<Q", number)[:1] for number in _NUMBERS),
    *_TEXTS,
    *_FLOATS,
)
"""What readers stumble over: the ends of ranges, and pieces of JSON."""

Random = random_numbers.Random
Operation = Callable[[bytes, Sequence[bytes], Random], bytes]


def mutate(content: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    """Applies one to four mutations; `donors` are files of which pieces are taken."""
    for _ in range(random.choice(_COUNTS)):
        content = random.choice(_OPERATIONS)(content, donors, random)
    return content


def _flip(content: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    at = random.randint(0, len(content))
    flipped = bytes(byte ^ 1 << random.randint(0, 7) for byte in content[at : at + 1])
    return content[:at] + flipped + content[at + 1 :]


def _overwrite(content: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    at, word = random.randint(0, len(content)), random.choice(WORDS)
    return content[:at] + word + content[at + len(word) :]


def _insert(content: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    at = random.randint(0, len(content))
    return content[:at] + random.choice(WORDS) + content[at:]


def _cut(content: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    return content[: random.randint(0, len(content))]


def _remove(content: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    start, end = _range(content, random)
    return content[:start] + content[end:]


def _repeat(content: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    start, end = _range(content, random)
    return content[:end] + content[start:]


def _splice(content: bytes, donors: Sequence[bytes], random: Random) -> bytes:
    """Puts a piece of another file over a piece of this one."""
    donor = random.choice(donors)
    (start, end), (first, last) = _range(content, random), _range(donor, random)
    return content[:start] + donor[first:last] + content[end:]


def _range(content: bytes, random: Random) -> tuple[int, int]:
    """Mostly short, so that most of the file stays as it was."""
    start = random.randint(0, len(content))
    longest = random.choice((4, 16, 64, len(content)))
    return start, min(len(content), start + random.randint(0, longest))


_OPERATIONS: tuple[Operation, ...] = (_flip, _overwrite, _insert, _cut, _remove, _repeat, _splice)
