"""JSON files whose fields are read by name and type, each fault one line."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from deltakv_jax.errors import UserError

T = TypeVar("T", bool, int, float, str)

_LONGEST = 100  # characters of a value that an error repeats
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


@dataclasses.dataclass(frozen=True)
class Fields:
    """A JSON object and the name that errors call it by.

    A field that is null counts as absent, as Hugging Face means it.
    """

    source: str
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Reads a file; UserError where it is missing, damaged or no JSON object."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or 'unreadable'}") from None
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from None
        except RecursionError:
            raise UserError(f"{path} is damaged: objects or lists nested too deeply") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} must hold a JSON object, got {type(values).__name__}")
        return cls(str(path), values)

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The field as a `kind`: an integer serves as a float, true and false only as bool.

        Raises:
          UserError: where it has another type, or is absent and there is no default.
        """
        value = default if self.values.get(name) is None else self.values[name]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            got = "it is missing" if value is None else f"got {shown(value)}"
            raise UserError(f"{self.source}: {name} must be {_WORDS[kind]}, {got}")
        try:
            return kind(value)
        except OverflowError:
            raise UserError(f"{self.source}: {name} is beyond the range of a float") from None

    def below(self, name: str) -> "Fields":
        """The object that a field holds; empty where it is absent."""
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise UserError(f"{self.source}: {name} must be an object, got {shown(value)}")
        return Fields(f"{self.source}: {name}", value)

    def refuse(self, name: str, *accepted: Any) -> None:
        """Raises UserError if the field is there with a value that is not among `accepted`."""
        value = self.values.get(name)
        if value is not None and value not in accepted:
            known = " or ".join(shown(one) for one in accepted) or "null"
            raise UserError(f"{self.source}: {name} is {shown(value)}, only {known} is supported")

    def integers(self, name: str) -> Iterator[int]:
        """The field as token ids: none, one, or a list of them."""
        value = self.values.get(name)
        for one in value if isinstance(value, list) else [value]:
            if one is None:
                continue
            if isinstance(one, bool) or not isinstance(one, int):
                raise UserError(f"{self.source}: {name} must hold integers, got {shown(value)}")
            yield one


def shown(value: Any) -> str:
    """A value as its file has it, cut where it is long, for errors."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "lists or objects in each other"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
