"""The specs that name a cache's formats: `SIDE[/SIDE]` (K, then V).

SIDE is NAME(:FLAG|:OPTION=VALUE)*, as in `delta`, `q4_0:rotate`, `delta:interval=16/q4_0`.
"""

import dataclasses
import re

from deltakv_jax.codec.formats import FORMATS, Format, Option
from deltakv_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class KVSpec:
    """The formats of K and of V. `str` gives the canonical spec."""

    k: Format
    v: Format

    def __str__(self) -> str:
        """One side where both are the same."""
        return str(self.k) if self.k == self.v else f"{self.k}/{self.v}"

    def check(self, head_dim: int) -> None:
        """Raises UserError where either side cannot hold this head_dim."""
        for side in (self.k, self.v):
            side.leaves(head_dim)


@dataclasses.dataclass(frozen=True)
class LayerSpecs:
    """A spec for each layer, under one name. Hashable, so static under `jit`."""

    name: str
    layers: tuple[KVSpec, ...]

    def __str__(self) -> str:
        """The name: the specs of all layers would fill a line each."""
        return self.name

    def check(self, head_dim: int) -> None:
        """Raises UserError where a side of any layer cannot hold this head_dim."""
        for spec in dict.fromkeys(self.layers):
            spec.check(head_dim)


CacheSpec = KVSpec | LayerSpecs
"""The formats of a cache: the same for all layers, or for each its own."""


def kinds_of(spec: CacheSpec) -> tuple[KVSpec, ...]:
    """The different specs of a cache's layers, in order of first use."""
    return (spec,) if isinstance(spec, KVSpec) else tuple(dict.fromkeys(spec.layers))


def parse_spec(text: str) -> KVSpec:
    """The spec that `text` names, or a UserError that says what would be right."""
    sides = text.split("/")
    if len(sides) > 2:
        raise UserError(f"KV format {text!r} has {len(sides)} sides, expected K or K/V")
    parsed = [_parse_side(side, text) for side in sides]
    return KVSpec(parsed[0], parsed[-1])


def _parse_side(side: str, text: str) -> Format:
    name, *words = side.split(":")
    if name not in FORMATS:
        raise UserError(f"unknown KV format {name!r} in {text!r}; known are {_known()}")
    options = FORMATS[name]().options
    given = dict(_parse_option(word, name, options) for word in words)
    if len(given) < len(words):
        raise UserError(f"KV format {side!r} gives an option twice")
    return FORMATS[name](**given)


def _parse_option(word: str, name: str, options) -> tuple[str, int | bool]:
    option, equals, value = word.partition("=")
    if option not in options:
        allowed = ", ".join(_usage(*item) for item in options.items()) or "no option"
        raise UserError(f"KV format {name!r} has no option {option!r}; it takes {allowed}")
    if (allowed := options[option]) is None:
        if equals:
            raise UserError(f"option {option!r} of KV format {name!r} takes no value")
        return option, True
    if not re.fullmatch("[0-9]{1,6}", value) or not _fits(int(value), allowed):
        raise UserError(
            f"option {option!r} of KV format {name!r} takes {_in_words(allowed)}, got {value!r}"
        )
    return option, int(value)


def _fits(value: int, allowed: int | tuple[int, ...]) -> bool:
    return value in allowed if isinstance(allowed, tuple) else value >= allowed


def _in_words(allowed: int | tuple[int, ...]) -> str:
    if isinstance(allowed, tuple):
        return " or ".join(map(str, allowed))
    return f"a whole number of {allowed} or more"


def _usage(option: str, allowed: Option) -> str:
    if isinstance(allowed, tuple):
        return f"{option}={'|'.join(map(str, allowed))}"
    return option if allowed is None else f"{option}=N"


def _known() -> str:
    """Every format with its options, as a spec would have them."""
    return ", ".join(
        name + "".join(f"[:{_usage(*item)}]" for item in make().options.items())
        for name, make in FORMATS.items()
    )
