"""Products with matrices that stay packed: expanded tile by tile, never whole.

For few rows of x the codes of a tile are multiplied as they are, and the scales applied to the sum
over each block b: y = sum_b scale_b (codes_b . x_b) - offset_b (sum of x_b). For many rows the
tile is expanded to float32 first, once for all of them.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.codec.matrix import MatrixFormat, Parts, Scaled
from deltakv_jax.linear.tiles import dot, fill, tile_rows
from deltakv_jax.typed import typed

_MANY_ROWS = 8  # of x, from which expanding a tile costs less than multiplying codes row by row
_TILE = 1 << 20  # weights in a tile that is expanded: 4 MiB in float32
_TILE_OF_CODES = 1 << 22  # weights in a tile that is not
_STEP = 64  # rows of a tile that are expanded at once

Multiply = Callable[[dict[str, Array]], Array]
"""The leaves [r, …] of a tile -> its product [b, r]."""


class PackedMatrix(nnx.Module):
    """A matrix [m, n], or a stack [l, m, n] of them, in one of the formats of `MATRICES`.

    Each leaf begins with the axes [m] or [l, m]; what follows is what one row has in it, as
    `format.leaves(n)` says. All that belongs to a row lies in that row of every leaf; all that
    belongs to a block of values lies at the block's place in the last axis. So a split of the
    rows, or of whole blocks of 256 values, splits every leaf alike.

    Attributes:
      format: static.
      leaves: a parameter for each leaf, by name.
    """

    def __init__(self, name: str, leaves: Mapping[str, Array]):
        """Takes the name of the format, and its leaves."""
        self.format = MATRICES[name]
        self.leaves = nnx.Dict({key: nnx.Param(leaf) for key, leaf in leaves.items()})

    def arrays(self) -> dict[str, Array]:
        """The leaves as plain arrays."""
        return {name: leaf[...] for name, leaf in self.leaves.items()}

    def stacked(self) -> "PackedMatrix":
        """A matrix [m, n] as a stack of one."""
        return PackedMatrix(self.format.name, {k: v[None] for k, v in self.arrays().items()})


@typed
def packed_rows(matrix: PackedMatrix, ids: Int[Array, "*lead"]) -> Float32[Array, "*lead n"]:
    """Rows of a matrix [m, n]: gathered as they are, then expanded."""
    return matrix.format.dequantize({name: leaf[ids] for name, leaf in matrix.arrays().items()})


@typed
def packed_product(
    stack: PackedMatrix, x: Float[Array, "b n"], row: jax.typing.ArrayLike
) -> Float32[Array, "b m"]:
    """Returns x @ W.T in float32, W being the matrix `row` of a stack."""
    leaves, (b, n) = stack.arrays(), x.shape
    m = next(iter(leaves.values())).shape[1]
    few = b < _MANY_ROWS
    rows = tile_rows(m, (_TILE_OF_CODES if few else _TILE) // n)
    multiply = (_few if few else _many)(stack.format, stack.format.split(x.astype(jnp.float32)))

    def tile(start: Array) -> Array:
        return multiply({name: _slice(leaf, row, start, rows) for name, leaf in leaves.items()})

    return fill(jnp.zeros((b, m), jnp.float32), 1, rows, tile)


def _slice(leaf: Array, row: jax.typing.ArrayLike, start: Array, rows: int) -> Array:
    shape, rest = leaf.shape[2:], (0,) * (leaf.ndim - 2)
    return jax.lax.dynamic_slice(leaf, (row, start, *rest), (1, rows, *shape))[0]


def _few(format_: MatrixFormat, xs: Parts) -> Multiply:
    """Multiplies codes; the sums of x stand outside of the loop over tiles."""
    sums = [jnp.sum(x, axis=-2) for x in xs]

    def multiply(leaves: dict[str, Array]) -> Array:
        left = zip(xs, sums, strict=True)
        return _sum(
            _scaled_product(scaled, list(itertools.islice(left, len(scaled.codes))))
            for scaled in format_.read(leaves)
        )

    return multiply


def _scaled_product(scaled: Scaled, xs: Sequence[tuple[Array, Array]]) -> Array:
    """The product [b, r] with what shares one scale; xs are parts of x and their sums."""
    if scaled.scale is None:
        return _sum(dot(x, values) for (x, _), values in zip(xs, scaled.codes, strict=True))
    pairs = zip(xs, scaled.codes, strict=True)
    products = _sum(
        jnp.sum(x[:, None] * codes.astype(jnp.float32), axis=-2) for (x, _), codes in pairs
    )
    products = products * scaled.scale
    if scaled.offset is not None:
        products = products - scaled.offset * _sum(x_sum for _, x_sum in xs)[:, None]
    return jnp.sum(products, axis=-1)


def _many(format_: MatrixFormat, xs: Parts) -> Multiply:
    """Expands a tile in steps; a loop over them, as XLA:CPU would else expand one by one."""

    def multiply(leaves: dict[str, Array]) -> Array:
        rows = len(next(iter(leaves.values())))
        step = tile_rows(rows, _STEP)
        cut = lambda start, leaf: jax.lax.dynamic_slice_in_dim(leaf, start, step)
        expand = lambda start: format_.parts(jax.tree.map(partial(cut, start), leaves))
        blank = tuple(jnp.zeros((rows, *x.shape[1:]), jnp.float32) for x in xs)
        weights = fill(blank, 0, step, expand)
        return _sum(dot(_flat(x), _flat(part)) for x, part in zip(xs, weights, strict=True))

    return multiply


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, terms)
