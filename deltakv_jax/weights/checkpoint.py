"""A converted model on disk: every matrix as it is stored on the device, config and tokenizer.

    FOLDER/0/arrays/      "final_norm", "embedding.0.values", "query.1.codes", …
    FOLDER/0/tokenizer/   the files of the tokenizer
    FOLDER/0/record.json  name and config of the model, and how each matrix is stored

An array of a matrix is named by role, number of its kind and leaf. What holds of the folder as a
whole stands in `deltakv_jax.checkpoint`.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from deltakv_jax import checkpoint
from deltakv_jax.checkpoint import Kind
from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.config import LlamaConfig, RopeScaling
from deltakv_jax.errors import UserError
from deltakv_jax.linear import Matrix, PackedMatrix, Stack
from deltakv_jax.model import Llama
from deltakv_jax.parallel.sharding import check_split, role_spec
from deltakv_jax.weights.roles import Shape, layer_shapes, model_shapes
from deltakv_jax.weights.storage import Packed, Storage, floats
from deltakv_jax.weights.tokenizers import Tokenizer
from deltakv_jax.weights.tokenizers.saving import load_saved

KIND = Kind("model", version=1)

_TOKENIZER = "tokenizer"
_FLOATS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class Origin(Protocol):
    """What a model is from: a `Source`, or a `Checkpoint`."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def config(self) -> LlamaConfig: ...  # noqa: D102

    def save_tokenizer(self, folder: Path) -> None: ...  # noqa: D102


class Checkpoint:
    """A converted model that is open, its weights unread.

    Attributes:
      name: of the model that was converted.
      config: what the model is.
      kinds: what its matrices are stored as, in order: "f32", "q4_k" …
    """

    def __init__(self, folder: Path):
        """Reads the record.

        Raises:
          UserError: where there is no converted model, or its record is damaged.
        """
        self._folder = folder
        self._saved = checkpoint.open_saved(folder, KIND)
        with checkpoint.reading(folder, KIND):
            record = self._saved.record
            self.name: str = record["name"]
            self.config = _config(record["config"])
            self._matrices: Mapping[str, Any] = record["matrices"]
            self.kinds = sorted({kind for one in self._matrices.values() for kind in one["kinds"]})

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that came with the model."""
        return load_saved(self._saved.path / _TOKENIZER, limit=self.config.vocab_size)

    def save_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files into `folder`."""
        for path in (self._saved.path / _TOKENIZER).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    def model(self, weights: str | None = None, mesh: Mesh | None = None) -> Llama:
        """The model, bit for bit as it was converted.

        Args:
          weights: None, "native", or what all matrices are stored as.
          mesh: the devices that share the model; None for the default device alone.

        Raises:
          UserError: where they are stored as something else, a file is damaged, or the model
            cannot be split over the mesh.
        """
        self._check_kinds(weights)
        with checkpoint.reading(self._folder, KIND):
            self._check_shapes()
            if mesh is None:
                return self._put_together(self._saved.arrays())
            kinds = self._matrices["output"]["kinds"] + self._matrices["down"]["kinds"]
            multiples = (_storage(kind).multiple for kind in kinds)
            check_split(self.config, math.lcm(*multiples), mesh.shape)
            role = lambda name: name.partition(".")[0]
            where = lambda name, ndim: NamedSharding(mesh, role_spec(role(name), ndim))
            return self._put_together(self._saved.arrays(where))

    def shapes(self, weights: str | None = None) -> Llama:
        """The model with a `ShapeDtypeStruct` in place of each array; only the record is read.

        Raises:
          UserError: where matrices are stored as something else than `weights`, as for `model`, or
            the record is damaged.
        """
        self._check_kinds(weights)
        with checkpoint.reading(self._folder, KIND):
            self._check_shapes()
            arrays = {
                name: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
                for name, (shape, dtype) in self._saved.record["arrays"].items()
            }
            return jax.eval_shape(self._put_together, arrays)

    def _check_kinds(self, weights: str | None) -> None:
        if weights not in (None, "native") and self.kinds != [weights]:
            held = " and ".join(self.kinds)
            raise UserError(f"{self._folder} holds {held}; convert the model anew for {weights}")

    def _check_shapes(self) -> None:
        """Raises ValueError where arrays are not those of such a model."""
        stored = {name: tuple(shape) for name, (shape, _) in self._saved.record["arrays"].items()}
        expected = dict(self._expected())
        for name in stored | expected:
            got, wanted = stored.get(name), expected.get(name)
            if got != wanted:
                raise ValueError(f"the array {name} has shape {got}, expected {wanted}")

    def _expected(self) -> Iterator[tuple[str, Shape]]:
        """The name and the shape of each array."""
        for role, shape, lead in _roles(self.config):
            if len(shape) == 1:
                yield role, (*lead, *shape)
                continue
            kinds, layout = self._kinds_and_layout(role)
            for number, kind in enumerate(kinds):
                rows = lead if layout is None else (sum(k == number for k, _ in layout),)
                for leaf, row in _storage(kind).leaves(shape[1]).items():
                    yield f"{role}.{number}.{leaf}", (*rows, shape[0], *row.shape)

    def _kinds_and_layout(self, role: str) -> tuple[list[str], list[tuple[int, int]] | None]:
        matrix = self._matrices[role]
        layout = matrix["layout"]
        return matrix["kinds"], layout and [(kind, row) for kind, row in layout]

    def _put_together(self, arrays: dict[str, Array]) -> Llama:
        model = jax.eval_shape(lambda: Llama(self.config, dtype=jnp.float32, rngs=nnx.Rngs(0)))
        for role, shape, lead in _roles(self.config):
            if len(shape) == 1:
                setattr(model, role, nnx.Param(arrays.pop(role)))
                continue
            kinds, layout = self._kinds_and_layout(role)
            stored = [_wrapped(arrays, f"{role}.{i}", kind, shape) for i, kind in enumerate(kinds)]
            setattr(model, role, Stack(stored, layout) if lead else Matrix(stored[0]))
        return model


def save_checkpoint(folder: Path, origin: Origin, model: Llama) -> None:
    """Writes a model, in place of the one that `folder` may hold.

    Args:
      folder: new, empty, or one that this function wrote.
      origin: where the model is from; its name, config and tokenizer are written too.
      model: its weights.

    Raises:
      UserError: where `folder` holds anything else, or cannot be written.
    """
    arrays, matrices = _taken_apart(model)
    record = {
        "name": origin.name,
        "config": dataclasses.asdict(origin.config),
        "matrices": matrices,
    }

    def write(version: Path) -> None:
        (version / _TOKENIZER).mkdir()
        origin.save_tokenizer(version / _TOKENIZER)

    checkpoint.save(folder, KIND, arrays, record, write)


def check_folder(folder: Path) -> None:
    """Raises UserError unless `save_checkpoint` may write to `folder`."""
    checkpoint.check_folder(folder, KIND)


def _roles(config: LlamaConfig) -> Iterator[tuple[str, Shape, Shape]]:
    """The roles of a model: name, shape, and the axes in front of it where layers have it."""
    for role, shape in model_shapes(config).items():
        yield role, shape, ()
    for role, shape in layer_shapes(config).items():
        yield role, shape, (config.layers,)


def _config(fields: Mapping[str, Any]) -> LlamaConfig:
    scaling, factors = fields["rope_scaling"], fields["rope_factors"]
    parts = {
        "rope_scaling": None if scaling is None else RopeScaling(**scaling),
        "rope_factors": None if factors is None else tuple(factors),
    }
    return LlamaConfig(**{**fields, **parts})


def _taken_apart(model: Llama) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays by name, and kinds and layout of each role that is a matrix."""
    arrays: dict[str, Array] = {}
    matrices: dict[str, Any] = {}
    for role, shape, _ in _roles(model.config):
        part = getattr(model, role)
        if len(shape) == 1:
            arrays[role] = part[...]
            continue
        kinds = [part.kind] if isinstance(part, Matrix) else list(part.kinds)
        layout = None if isinstance(part, Matrix) else part.layout
        matrices[role] = {"kinds": [_name(kind) for kind in kinds], "layout": layout}
        for number, kind in enumerate(kinds):
            arrays |= {f"{role}.{number}.{leaf}": x for leaf, x in _leaves(kind).items()}
    return arrays, matrices


def _name(kind: nnx.Param | PackedMatrix) -> str:
    if isinstance(kind, PackedMatrix):
        return kind.format.name
    return _FLOATS[str(kind[...].dtype)]


def _leaves(kind: nnx.Param | PackedMatrix) -> dict[str, Array]:
    return kind.arrays() if isinstance(kind, PackedMatrix) else {"values": kind[...]}


def _storage(kind: str) -> Storage:
    """How this device stores a kind: 16-bit floats are packed on a CPU only."""
    return floats(kind) if kind in _FLOATS.values() else Packed(MATRICES[kind])


def _wrapped(
    arrays: dict[str, Array], name: str, kind: str, shape: Shape
) -> jax.Array | PackedMatrix:
    """Takes the leaves of a matrix, or of a stack of them, out of `arrays`."""
    store = _storage(kind)
    rows = store.leaves(shape[1]).items()
    return store.wrap({leaf: _as(arrays.pop(f"{name}.{leaf}"), row.dtype) for leaf, row in rows})


def _as(array: Array, dtype: Any) -> Array:
    """The same bits: a model that was converted on a CPU may be loaded elsewhere, and back."""
    return array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)
