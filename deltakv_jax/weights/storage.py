"""What a matrix becomes on its way to the device: a dense array or a packed one, rows by rows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import jax
import ml_dtypes
import numpy as np

from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.codec.matrix import Blocks, MatrixFormat, MatrixLeaves, RowLeaf
from deltakv_jax.errors import UserError
from deltakv_jax.linear import PackedMatrix
from deltakv_jax.weights.source import Tensor

Rows = Callable[[slice], MatrixLeaves]
"""The leaves, in NumPy, of rows that follow each other."""

_DTYPES = {"f32": np.float32, "f64": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}


@dataclasses.dataclass(frozen=True)
class Dense:
    """Stores a matrix as an array of `dtype`."""

    dtype: np.dtype
    multiple: ClassVar[int] = 1

    def leaves(self, n: int) -> dict[str, RowLeaf]:
        """What a row of n values has in each leaf."""
        return {"values": RowLeaf((n,), self.dtype)}

    def open(self, tensor: Tensor) -> Rows:
        """Reads a matrix; its rows raise UserError where a value is not finite or does not fit."""
        values = stored_values(tensor)
        return lambda rows: {"values": cast(tensor.name, values[rows], self.dtype)}

    def wrap(self, leaves: Mapping[str, jax.Array]) -> jax.Array:
        """The matrix, or the stack of them, with these leaves."""
        return leaves["values"]


@dataclasses.dataclass(frozen=True)
class Packed:
    """Stores a matrix in a format of `MATRICES`; blocks in it already stay as they are."""

    format: MatrixFormat

    @property
    def multiple(self) -> int:
        """Values of a row that are stored together."""
        return self.format.multiple

    def leaves(self, n: int) -> dict[str, RowLeaf]:
        """What a row of n values has in each leaf."""
        return self.format.leaves(n)

    def open(self, tensor: Tensor) -> Rows:
        """Reads a matrix; its rows raise UserError where a value is not finite or does not fit.

        Raises:
          UserError: where the length of a row does not fit.
        """
        if (n := tensor.shape[1]) % self.multiple:
            raise UserError(
                f"the tensor {tensor.name} has rows of {n} values, {self.format.name} stores "
                f"multiples of {self.multiple}"
            )
        raw = isinstance(self.format, Blocks) and tensor.kind == self.format.name
        return self._packed(tensor) if raw else self._quantized(tensor)

    def wrap(self, leaves: Mapping[str, jax.Array]) -> PackedMatrix:
        """The matrix, or the stack of them, with these leaves."""
        return PackedMatrix(self.format.name, leaves)

    def _packed(self, tensor: Tensor) -> Rows:
        raw = tensor.read()

        def pack(rows: slice) -> MatrixLeaves:
            leaves = self.format.pack(raw[rows])
            if not self.format.finite(leaves):
                raise UserError(f"the tensor {tensor.name} holds NaN or infinity")
            return leaves

        return pack

    def _quantized(self, tensor: Tensor) -> Rows:
        values = stored_values(tensor)

        def quantize(rows: slice) -> MatrixLeaves:
            with np.errstate(over="ignore", invalid="ignore"):
                leaves = self.format.quantize(values[rows])
            if not self.format.finite(leaves):
                raise not_finite(tensor.name, values[rows], self.format.name)
            return leaves

        return quantize


Storage = Dense | Packed
Choice = Callable[[Tensor], Storage]


def floats(name: str) -> Storage:
    """Storage as "f32", "bf16" or "f16"; a CPU keeps 16 bits packed, as it cannot multiply them."""
    if name in MATRICES and jax.default_backend() == "cpu":
        return Packed(MATRICES[name])
    return Dense(np.dtype(_DTYPES[name]))


def native(tensor: Tensor) -> Storage:
    """Storage as in the file; block types that cannot stay packed become floats."""
    if tensor.kind in _DTYPES:
        return floats(tensor.kind)
    if tensor.kind in MATRICES:
        return Packed(MATRICES[tensor.kind])
    return floats("f32" if jax.default_backend() == "cpu" else "bf16")


WEIGHTS: dict[str, Choice] = {
    "f32": lambda _: floats("f32"),
    "bf16": lambda _: floats("bf16"),
    "f16": lambda _: floats("f16"),
    "q8_0": lambda _: Packed(MATRICES["q8_0"]),
    "q4_0": lambda _: Packed(MATRICES["q4_0"]),
    "native": native,
}
"""What `--weights` may say, and how a matrix is then stored."""


def choose(weights: str | None, matrices: Sequence[Tensor]) -> Choice:
    """How each matrix of a checkpoint is stored.

    Args:
      weights: a key of `WEIGHTS`. None: as in the file where it holds blocks; of other files
        float32 on a CPU, and elsewhere the 16-bit type that all matrices have, or float32.
      matrices: all of them.

    Raises:
      UserError: where the word is unknown.
    """
    if weights is None:
        weights = _default({tensor.kind for tensor in matrices})
    if weights not in WEIGHTS:
        raise UserError(f"unknown weights {weights!r}; known are {', '.join(WEIGHTS)}")
    return WEIGHTS[weights]


def stored_values(tensor: Tensor) -> np.ndarray:
    """The values [*shape]: in their own dtype, or float32 out of blocks."""
    return tensor.read() if tensor.kind in _DTYPES else tensor.values()


def cast(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values of the tensor `name` in another dtype; UserError where one is not finite there."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.astype(dtype)
    if not np.isfinite(stored).all():
        raise not_finite(name, values, str(dtype))
    return stored


def not_finite(name: str, values: np.ndarray, target: str) -> UserError:
    """The error for values of the tensor `name` of which some are not finite as `target`."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        fits = np.isfinite(values).all()
    return UserError(
        f"the tensor {name} " + (f"does not fit {target}" if fits else "holds NaN or infinity")
    )


def _default(kinds: set[str]) -> str:
    if kinds - _DTYPES.keys():
        return "native"
    if jax.default_backend() == "cpu" or len(kinds) != 1:
        return "f32"
    return kinds.pop() if kinds <= WEIGHTS.keys() else "f32"
