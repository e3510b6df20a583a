"""What was learned of a model on a text, for its caches: one small file that goes with the model.

The means of its channels, for formats that take them off before they pack (`centre`); what an
error in each layer's K and V costs; and, where they were allotted, the formats of all layers. The
file is safetensors: arrays, and a record of what they were made of in its metadata.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32
from safetensors import safe_open
from safetensors.numpy import save

from deltakv_jax.cache import Sides
from deltakv_jax.codec import CacheSpec, KVSpec, LayerSpecs, Leaves, kinds_of, parse_spec
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.weights.native import reading

KIND = "deltakv_jax.calibration"
VERSION = 1
CALIBRATED = "calibrated"
"""The KV format that a calibration has allotted."""

Fields = dict[str, str]
_ARRAYS = {"k_mean": "F16", "v_mean": "F16", "k_cost": "F32", "v_cost": "F32"}
_FIELDS = ("model", "fingerprint", "text", "text_sha256", "ctx", "chunks", "sha256")
_MAKE = "scripts/calibrate.py"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What `calibrate` has learned.

    Attributes:
      k_mean: float16 [l k d], of each channel of K before RoPE.
      v_mean: the same of V.
      k_cost: float32 [l], KL divergence in nats for each unit of relative squared error of K after
        RoPE, what is squared for it being what is left of K without its mean.
      v_cost: the same of V.
      specs: of each layer, as allotted under a budget of bits; None where none was given.
      model: its name.
      fingerprint: what tells its weights from others, as `generation.saving` has it.
      text: the name of the text.
      text_sha256: of its bytes.
      ctx: tokens of a chunk of it.
      chunks: how many were taken, from its beginning.
    """

    k_mean: Float16[np.ndarray, "l k d"]
    v_mean: Float16[np.ndarray, "l k d"]
    k_cost: Float32[np.ndarray, " l"]
    v_cost: Float32[np.ndarray, " l"]
    specs: tuple[KVSpec, ...] | None = None
    model: str
    fingerprint: Mapping[str, Any]
    text: str
    text_sha256: str
    ctx: int
    chunks: int

    @property
    def centre(self) -> Sides:
        """The means, as `make_cache` takes them, on the host."""
        leaves: Callable[[Any], Leaves] = lambda mean: {"mean": mean}
        return Sides(leaves(self.k_mean), leaves(self.v_mean))

    @property
    def sha256(self) -> str:
        """Of all that the file says, in hexadecimal."""
        return _sha256(self._arrays(), self._fields())

    def to_bytes(self) -> bytes:
        """The content of its file."""
        fields = {"format": f"{KIND}/{VERSION}", **self._fields(), "sha256": self.sha256}
        return save(self._arrays(), fields)

    def check_sizes(self, config: LlamaConfig) -> None:
        """Raises UserError where the means are not those of a model of this config."""
        sizes: dict[str, Any] = dict(zip(_SIZES, self.k_mean.shape, strict=True))
        self._check({name: getattr(config, name) for name in _SIZES}, sizes)

    def check_model(self, fingerprint: Mapping[str, Any]) -> None:
        """Raises UserError where it was made of a model other than that of this fingerprint."""
        self._check(json.loads(json.dumps(fingerprint)), self.fingerprint)

    def _check(self, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        for name in {**wanted, **found}:
            if (its := found.get(name)) != (this := wanted.get(name)):
                raise UserError(
                    f"the calibration is of another model, {self.model}: {name} is {its} there, "
                    f"{this} here; make one with {_MAKE} and the same --model and --weights"
                )

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in _ARRAYS}

    def _fields(self) -> Fields:
        """All but the arrays, as text."""
        fields = {
            "model": self.model,
            "fingerprint": json.dumps(self.fingerprint, sort_keys=True),
            "text": self.text,
            "text_sha256": self.text_sha256,
            "ctx": str(self.ctx),
            "chunks": str(self.chunks),
        }
        if self.specs is not None:
            fields["specs"] = json.dumps([str(spec) for spec in self.specs])
        return fields


_SIZES = ("layers", "kv_heads", "head_dim")


def load_calibration(path: Path | str) -> Calibration:
    """The calibration in a file, every field checked.

    Raises:
      UserError: where it cannot be read, is damaged, of another version or no calibration at all.
    """
    source = f"the calibration {path}"
    with reading(source):
        with open(path, "rb"):
            pass  # what the system says, in its own words
        with safe_open(path, "numpy") as file:
            fields = dict(file.metadata() or {})
            _check_version(source, fields.pop("format", ""))
            arrays = {name: _array(file, name) for name in _ARRAYS}
            if extra := set(file.keys()) - set(_ARRAYS):
                raise ValueError(f"{min(extra)} does not belong there")
        return _checked(arrays, fields)


def parse_cache_spec(text: str, calibration: Calibration | None) -> CacheSpec:
    """As `parse_spec`, of formats that may take a calibration, or be its own.

    Raises:
      UserError: also where they take one and there is none.
    """
    if text == CALIBRATED:
        return _allotted(calibration)
    spec = parse_spec(text)
    if calibration is None and takes_means(spec):
        raise UserError(
            f"{text} takes the means of a calibration file; give --kv-calibration FILE, made by "
            f"{_MAKE}"
        )
    return spec


def takes_means(spec: CacheSpec) -> bool:
    """Whether any layer takes means off."""
    return any(kind.k.centre or kind.v.centre for kind in kinds_of(spec))


def _allotted(calibration: Calibration | None) -> LayerSpecs:
    if calibration is None:
        raise UserError(
            f"KV format {CALIBRATED!r} is what a calibration file has allotted; give "
            f"--kv-calibration FILE, made by {_MAKE} --bits B"
        )
    if calibration.specs is None:
        raise UserError(
            f"KV format {CALIBRATED!r}: the calibration has allotted none; make one with "
            f"{_MAKE} --bits B"
        )
    return LayerSpecs(CALIBRATED, calibration.specs)


def _sha256(arrays: Mapping[str, np.ndarray], fields: Fields) -> str:
    seen = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name in _ARRAYS:
        seen.update(arrays[name].tobytes())
    return seen.hexdigest()


def _check_version(source: str, found: str) -> None:
    kind, _, version = found.partition("/")
    if kind != KIND:
        raise UserError(f"{source} is none; {_MAKE} makes one")
    if version != str(VERSION):
        raise UserError(f"{source} has format version {version}, expected {VERSION}")


def _array(file: Any, name: str) -> np.ndarray:
    if name not in file.keys():  # noqa: SIM118, it is no mapping
        raise ValueError(f"{name} is missing")
    part = file.get_slice(name)
    axes = 3 if name.endswith("mean") else 1
    if part.get_dtype() != _ARRAYS[name] or len(part.get_shape()) != axes:
        raise ValueError(f"{name} is {part.get_dtype()} of shape {part.get_shape()}")
    return file.get_tensor(name)


def _checked(arrays: dict[str, np.ndarray], fields: Fields) -> Calibration:
    """What the file holds; ValueError where that cannot be."""
    for name in _FIELDS:
        if name not in fields:
            raise ValueError(f"{name} is missing")
    if extra := set(fields) - {*_FIELDS, "specs"}:
        raise ValueError(f"{min(extra)} does not belong there")
    if fields.pop("sha256") != _sha256(arrays, fields):
        raise ValueError("it is not as it was written")
    _check_arrays(arrays)
    layers, _, head_dim = arrays["k_mean"].shape
    specs = _specs(fields["specs"], layers, head_dim) if "specs" in fields else None
    return Calibration(
        **arrays,
        specs=specs,
        model=fields["model"],
        fingerprint=_fingerprint(fields["fingerprint"], arrays["k_mean"].shape),
        text=fields["text"],
        text_sha256=_matching("text_sha256", "[0-9a-f]{64}", fields),
        ctx=int(_matching("ctx", "[1-9][0-9]{0,8}", fields)),
        chunks=int(_matching("chunks", "[1-9][0-9]{0,8}", fields)),
    )


def _check_arrays(arrays: dict[str, np.ndarray]) -> None:
    shape = arrays["k_mean"].shape
    wanted = {"k_mean": shape, "v_mean": shape, "k_cost": shape[:1], "v_cost": shape[:1]}
    for name, array in arrays.items():
        if array.shape != wanted[name] or not array.size:
            raise ValueError(f"{name} has the shape {array.shape}")
        if not np.isfinite(array).all() or (name.endswith("cost") and array.min() < 0):
            raise ValueError(f"{name} has values that cannot be")


def _specs(text: str, layers: int, head_dim: int) -> tuple[KVSpec, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("specs is no list of formats")
    if len(names) != layers:
        raise ValueError(f"it has {len(names)} specs for {layers} layers")
    try:
        specs = tuple(map(parse_spec, names))
        LayerSpecs(CALIBRATED, specs).check(head_dim)
    except UserError as error:
        raise ValueError(str(error)) from None
    return specs


def _fingerprint(text: str, shape: tuple[int, ...]) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict) or tuple(map(found.get, _SIZES)) != shape:
        raise ValueError("fingerprint does not fit the arrays")
    return found


def _matching(name: str, pattern: str, fields: Fields) -> str:
    if not re.fullmatch(pattern, fields[name]):
        raise ValueError(f"{name} is {fields[name]!r}")
    return fields[name]
