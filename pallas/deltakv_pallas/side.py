"""One side (K or V) of a cache, as a program of a kernel reads it: a tile of tokens at a time.

Triton takes sizes that are powers of two only, so rows of other widths are read behind a mask.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.codec import Format, Planes
from deltakv_pallas.lowering import load

Refs = Mapping[str, Any]
"""References to leaves [l, b, k, rows, width], by name."""


class Tile(NamedTuple):
    """What a program has read of one side.

    Attributes:
      side: the side.
      terms: float32 planes [n, w].
      bases: float32 planes [g, w] of what chains begin with; none without chains.
      opens: whether a group begins with the tile.
    """

    side: "Side"
    terms: Planes
    bases: Planes
    opens: Array


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
    """

    format: Format
    head_dim: int
    tile: int

    @property
    def group(self) -> int:
        """Tokens of a tile that belong to one group."""
        return min(self.format.interval, self.tile)

    @property
    def carried(self) -> bool:
        """Whether groups are longer than tiles, so that a tile goes on from the one before."""
        return self.format.interval > self.tile

    def columns(self) -> Planes:
        """int32 [w] for each plane: where its values lie among those of a head; -1 is padding."""
        planes = self.format.split(jnp.arange(self.head_dim, dtype=jnp.int32))
        return tuple(pad_last(plane, -1) for plane in planes)

    def widths(self) -> tuple[int, ...]:
        """The width of each plane."""
        return tuple(len(plane) for plane in self.columns())

    def read(self, refs: Refs, columns: Any, where: tuple[Any, ...], start: Array) -> Tile:
        """The tile that begins with token `start`.

        Args:
          refs: the leaves.
          columns: references to what `columns` gives.
          where: layer, sequence and kv head.
          start: its first token, a multiple of the interval or of the tile.
        """
        leaves = self.format.leaves(self.head_dim)
        tokens = start + jnp.arange(self.tile)
        rows = {
            name: _whole_rows(refs[name], where, tokens)
            for name, leaf in leaves.items()
            if leaf.per == "token"
        }
        groups = start // self.format.interval + jnp.arange(self.tile // self.group)
        base = lambda columns: self.format.base(
            {
                name: _picked(refs[name], where, groups, columns)
                for name, leaf in leaves.items()
                if leaf.per == "group"
            }
        )
        bases = tuple(base(ref[...]) for ref in columns) if self.format.chained else ()
        return Tile(self, self.format.terms(rows), bases, start % self.format.interval == 0)


def pad_last(x: Array, value: float = 0) -> Array:
    """Returns x with its last axis padded to a power of two."""
    missing = power_of_two(x.shape[-1]) - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=value)


def _whole_rows(ref: Any, where: tuple[Any, ...], tokens: Array) -> Array:
    """[n, width padded to a power of two]: whole rows of a leaf."""
    width = ref.shape[-1]
    columns = jnp.arange(power_of_two(width))
    if len(columns) == width:
        return load(ref.at[(*where, tokens[:, None], columns[None, :])])
    return _picked(ref, where, tokens, jnp.where(columns < width, columns, -1))


def _picked(ref: Any, where: tuple[Any, ...], rows: Array, columns: Array) -> Array:
    """[rows, columns] of a leaf, and 0 where the column is -1."""
    at = ref.at[(*where, rows[:, None], jnp.maximum(columns, 0)[None, :])]
    mask = jnp.broadcast_to(columns >= 0, (len(rows), len(columns)))
    return load(at, mask=mask, other=0)
