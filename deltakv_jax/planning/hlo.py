"""What compiled and lowered programs hold, read from their text.

A compiled program is XLA's HLO: computations of one instruction a line, of which a loop names the
two that are its condition and its body, and, where its trips are known, how many there are. A
lowered one is StableHLO, before XLA has seen it.
"""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.-]+ = (\(.*?\)|\S+) ([a-z-]+)\(")
_CALLED = re.compile(r"(body|condition|calls|to_apply|\w+_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
_LOWERED = re.compile(r'stablehlo\.(\w+)"?\(')
_CUSTOM_CALL = re.compile(r"stablehlo\.custom_call @([\w.$]+)")


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: of its result on each device.
      times: how often it runs whenever the program does.
    """

    kind: str
    bytes: int
    times: int


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, from its HLO text, one for each place.

    Raises:
      ValueError: where one stands in a loop of unknown length.
    """
    computations = dict(_computations(text))
    entry = next(name for name, computation in computations.items() if computation.entry)
    return list(_walk(computations, entry, 1))


def lowered_calls(text: str) -> dict[str, int]:
    """How often each collective and each custom call stands in a lowered program's StableHLO."""
    operations = [name.replace("_", "-") for name in _LOWERED.findall(text)]
    found = collections.Counter(name for name in operations if name in COLLECTIVES)
    found.update(f"custom-call {name}" for name in _CUSTOM_CALL.findall(text))
    return dict(found)


class _Computation(NamedTuple):
    entry: bool
    lines: list[str]


def _computations(text: str) -> Iterator[tuple[str, _Computation]]:
    lines: list[str] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            lines = []
            yield head[2], _Computation(head[1] is not None, lines)
        else:
            lines.append(line)


def _walk(
    computations: dict[str, _Computation], name: str, times: int | None
) -> Iterator[Collective]:
    for line in computations[name].lines:
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            continue
        shape, operation = instruction.groups()
        if operation in COLLECTIVES:
            if times is None:
                raise ValueError(f"{operation} in {name}, a loop of unknown length")
            yield Collective(operation, _bytes(shape), times)
            continue
        inside = _times(line, times) if operation == "while" else times
        for called in _called(line):
            yield from _walk(computations, called, inside)


def _times(line: str, times: int | None) -> int | None:
    trips = _TRIPS.search(line)
    return None if trips is None or times is None else times * int(trips[1])


def _called(line: str) -> list[str]:
    named = [name for _, name in _CALLED.findall(line)]
    branches = _BRANCHES.search(line)
    listed = re.findall(r"[\w.-]+", branches[1]) if branches else []
    return [*named, *listed]


def _bytes(shape: str) -> int:
    """Bytes of a shape such as f32[8,2]{1,0}, or of a tuple of them."""
    return sum(_array_bytes(*array) for array in _ARRAY.findall(shape))


def _array_bytes(letters: str, bits: str, axes: str) -> int:
    size = 1
    for axis in filter(None, axes.split(",")):
        size *= int(axis)
    return size if letters == "pred" else -(-size * int(bits) // 8)
