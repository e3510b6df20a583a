"""Runs back from their JSON, every field checked: tables and pictures are made of files too."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation.results import Run

T = TypeVar("T")


def read_runs(path: Path) -> tuple[Run, ...]:
    """The runs of a file that `report.to_json` wrote; UserError where it is damaged."""
    return runs(read_object(path), path)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found


def runs(document: dict[str, Any], path: Path) -> tuple[Run, ...]:
    """The runs of a document that was read from `path`."""
    return records(Run, document, "runs", path)


def records(kind: type[T], document: dict[str, Any], key: str, path: Path) -> tuple[T, ...]:
    """The list under `key` as dataclasses; what they do not know is left aside."""
    if key not in document:
        raise UserError(f"{path}: {key!r} is missing")
    return _value(tuple[kind, ...], document[key], f"{path}: {key}")


def record(kind: Any, document: dict[str, Any], prefix: str) -> Any:
    """A JSON object as the dataclass `kind`; `prefix` and its name name a field in an error."""
    fields = typing.get_type_hints(kind)
    for name in fields:
        if name not in document:
            raise UserError(f"{prefix}{name} is missing")
    return kind(
        **{name: _value(of, document[name], f"{prefix}{name}") for name, of in fields.items()}
    )


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as what the annotation `kind` says; `where` names it in an error."""
    if dataclasses.is_dataclass(kind):
        _check(isinstance(value, dict), "an object", value, where)
        return record(kind, value, f"{where}.")
    if typing.get_origin(kind) is tuple:
        _check(isinstance(value, list), "a list", value, where)
        (item, _) = typing.get_args(kind)
        return tuple(_value(item, one, f"{where}[{i}]") for i, one in enumerate(value))
    if isinstance(kind, types.UnionType):
        (present,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
        return None if value is None else _value(present, value, where)
    accepted = (int, float) if kind is float else (kind,)
    _check(type(value) in accepted, f"of type {kind.__name__}", value, where)
    return kind(value)


def _check(holds: bool, expected: str, value: Any, where: str) -> None:
    if not holds:
        raise UserError(f"{where} should be {expected}, got {value!r:.40}")
