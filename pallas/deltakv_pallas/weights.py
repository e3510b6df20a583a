"""Weights of one kind, as a program of the matrix-vector product reads them.

Letters: r rows, b blocks that are read at once.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.codec.matrix import Blocks, Factors
from deltakv_jax.codec.packing import BLOCK
from deltakv_pallas.lowering import load
from deltakv_pallas.words import codes, gather

QUAD = 4
"""Positions of a block whose codes share a word."""


class Place(NamedTuple):
    """What is read at once.

    Attributes:
      layer: the row in the stack.
      rows: int32 [r, 1], of the matrix.
      blocks: int32 [1, b].
    """

    layer: Array
    rows: Array
    blocks: Array

    @property
    def each(self) -> Array:
        """int32 [r, b], the blocks once for each row."""
        return self.blocks + jnp.zeros_like(self.rows)


@dataclasses.dataclass(frozen=True)
class Weights:
    """A kind of weights.

    Attributes:
      format: how they are stored.
      leaves: references to leaves [l, m, …], by name.
      maker: whose assembly is used, see `words`.
    """

    format: Blocks
    leaves: Mapping[str, Any]
    maker: str | None

    @property
    def quads(self) -> int:
        """Quads of positions of each part of the codes."""
        return BLOCK // self.format.count // QUAD

    def words(self, place: Place, quad: Array) -> list[Array]:
        """The codes of one quad of each part, four to a word: int32 [r, b] each."""
        fields = self.format.fields()
        names = dict.fromkeys([field.leaf for field in fields])
        if fields[0].high:
            names["high"] = None
        packed = {name: self._gathered(name, place, quad) for name in names}
        return [codes(field, packed) for field in fields]

    def _gathered(self, name: str, place: Place, quad: Array) -> Array:
        at = lambda i: (place.layer, place.rows, quad * QUAD + i, place.blocks)
        leaf = self.leaves[name]
        return gather([load(leaf.at[at(i)]) for i in range(QUAD)], self.maker)

    def factors(self, place: Place) -> Factors:
        """Scales and offsets, float32 [r, b], of each run of parts."""
        return self.format.factors(functools.partial(self._numbers, place))

    def _numbers(self, place: Place, name: str, *run: int) -> Array:
        leaf, blocks = self.leaves[name], place.blocks
        if leaf.shape[-1] < self.leaves[self.format.fields()[0].leaf].shape[-1]:
            blocks = blocks // self.format.per
        return load(leaf.at[(place.layer, place.rows, *run, blocks)]).astype(jnp.float32)
