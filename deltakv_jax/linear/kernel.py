"""Products with packed matrices by the GPU kernel: where they are taken, and where they may be.

The kernel reads blocks, of several stacks at once if a role has several kinds. It is taken unasked
for a few rows of x where it was timed on the device; what is asked for by name runs or raises.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from deltakv_jax.codec.matrix import Blocks
from deltakv_jax.errors import UserError
from deltakv_jax.linear.packed import PackedMatrix
from deltakv_jax.typed import typed
from deltakv_pallas.matvec import Kind, matvec, readable, timed_here

Implementation = Literal["xla", "pallas", "pallas-interpret"]
"""Plain JAX, the kernel, or the kernel as plain JAX on any machine; None chooses."""

MOST_ROWS = 16
"""Of x, up to which the kernel is taken: from there on a product is bound by arithmetic."""


def suits(kinds: Sequence[Any], x: Array, implementation: Implementation | None) -> bool:
    """Whether the kernel is to multiply x [b, n] with matrices of these kinds, dense or packed."""
    if implementation is not None:
        return implementation != "xla" and any(isinstance(kind, PackedMatrix) for kind in kinds)
    found = _in_blocks(kinds)
    if len(x) > MOST_ROWS or found is None:
        return False
    rows = next(iter(found[0][1].values())).shape[1]
    formats = [format_ for format_, _ in found]
    return timed_here(formats, rows, x.shape[1]) and all(map(readable, found))


@typed
def kernel_product(
    kinds: Sequence[Any],
    x: Float[Array, "b n"],
    kind: jax.typing.ArrayLike,
    row: jax.typing.ArrayLike,
    implementation: Implementation | None,
) -> Float32[Array, "b m"]:
    """Returns x @ W.T, W being the matrix `row` of the stack `kind`.

    Raises:
      UserError: where a matrix is not stored in blocks, or has a size that kernels cannot count in.
    """
    found = _in_blocks(kinds)
    if found is None:
        raise UserError("the kernel multiplies blocks, some weights are stored otherwise")
    interpret = implementation == "pallas-interpret"
    return matvec(found, x.astype(jnp.float32), kind, row, interpret=interpret)


def _in_blocks(kinds: Sequence[Any]) -> list[Kind] | None:
    """What the kernel takes; None unless all matrices are stored in blocks."""
    found: list[Kind] = []
    for kind in kinds:
        if not isinstance(kind, PackedMatrix) or not isinstance(kind.format, Blocks):
            return None
        found.append((kind.format, kind.arrays()))
    return found
