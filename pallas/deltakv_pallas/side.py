"""One side (K or V) of a cache, as a program of a kernel reads it: a tile of tokens at a time.

Triton takes sizes that are powers of two only, so rows of other widths are read behind a mask.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.codec import Format, Leaf, Planes, Unpack
from deltakv_pallas.lowering import load

Refs = Mapping[str, Any]
"""References to leaves [l, b, k, rows, width], by name."""

_LEAST = 16
"""Values that a plane is widened to, which a matrix unit takes."""


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class Side:
    """What is static of a side.

    Attributes:
      format: how it is stored.
      head_dim: values of a head.
      tile: tokens that are read at once.
      unpack: how codes become numbers.
    """

    format: Format
    head_dim: int
    tile: int
    unpack: Unpack

    @property
    def group(self) -> int:
        """Tokens of a tile that belong to one group."""
        return min(self.format.interval, self.tile)

    @property
    def carried(self) -> bool:
        """Whether groups are longer than tiles, so that a tile goes on from the one before."""
        return self.format.interval > self.tile

    def widened(self, width: int) -> int:
        """What so many numbers of a row take, once the row is as wide as Triton wants it."""
        least = _LEAST * self.format.planes
        return width * max(least, power_of_two(self.head_dim)) // self.head_dim

    def columns(self) -> Planes:
        """int32 [w] for each plane: where its values lie among those of a head; -1 is padding."""
        planes = self.format.split(jnp.arange(self.head_dim, dtype=jnp.int32))
        return tuple(self.pad(plane, -1) for plane in planes)

    def widths(self) -> tuple[int, ...]:
        """The width of each plane."""
        return tuple(len(plane) for plane in self.columns())

    def pad(self, x: Array, value: float = 0) -> Array:
        """Returns a plane [*lead, …] widened to [*lead, w]."""
        missing = self.widened(x.shape[-1]) - x.shape[-1]
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=value)

    def terms(self, refs: Refs, where: tuple[Any, ...], start: Array) -> Planes:
        """Planes [n, w] of the tile that begins with token `start`, to be multiplied.

        Args:
          refs: the leaves.
          where: layer, sequence and kv head.
          start: its first token, a multiple of the interval or of the tile.
        """
        tokens = start + jnp.arange(self.tile)
        rows = {
            name: self._rows(leaf, refs[name], where, tokens)
            for name, leaf in self.format.leaves(self.head_dim).items()
            if leaf.per == "token"
        }
        terms = self.format.terms(rows, self.unpack)
        return tuple(term.astype(self.format.operand) for term in terms)

    def bases(self, refs: Refs, columns: Any, where: tuple[Any, ...], groups: Array) -> Planes:
        """Float32 planes [g, w] of what the chains of groups [g] begin with.

        Args:
          refs: the leaves.
          columns: references to what `columns` gives.
          where: layer, sequence and kv head.
          groups: their numbers; what lies behind the last group reads as the last.
        """
        names = [
            name for name, leaf in self.format.leaves(self.head_dim).items() if leaf.per == "group"
        ]

        def base(columns: Array) -> Array:
            rows = lambda ref: _picked(ref, where, jnp.minimum(groups, ref.shape[3] - 1), columns)
            return self.format.base({name: rows(refs[name]) for name in names})

        return tuple(base(ref[...]) for ref in columns)

    def _rows(self, leaf: Leaf, ref: Any, where: tuple[Any, ...], tokens: Array) -> Array:
        """[n, widened]: whole rows of a leaf."""
        width = leaf.width
        columns = jnp.arange(self.widened(width) if leaf.widened else width)
        if len(columns) == width:
            return load(ref.at[(*where, tokens[:, None], columns[None, :])])
        return _picked(ref, where, tokens, jnp.where(columns < width, columns, -1))


def _picked(ref: Any, where: tuple[Any, ...], rows: Array, columns: Array) -> Array:
    """[rows, columns] of a leaf, and 0 where the column is -1."""
    at = ref.at[(*where, rows[:, None], jnp.maximum(columns, 0)[None, :])]
    mask = jnp.broadcast_to(columns >= 0, (len(rows), len(columns)))
    return load(at, mask=mask, other=0)
