"""What one program of the packed matrix-vector product does: some rows of a matrix by x.

Letters: r rows of a pass, b blocks that are read at once.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deltakv_jax.codec.matrix import Blocks
from deltakv_pallas.lowering import load, program_id
from deltakv_pallas.weights import Place, Weights
from deltakv_pallas.words import dot4

DIGITS = 2
"""Bytes of a value of x."""

BASE = 256

Counts = dict[tuple[int, int, int, int], Array]
"""int32 [r, b] by pass, run of parts that share a scale, row of x, and digit."""

Totals = dict[tuple[int, int], Array]
"""float32 [r, b] by pass and row of x."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the work is cut into programs; static.

    Attributes:
      size: rows of the matrix.
      blocks: of a row.
      rows: of a pass.
      passes: of a program, which share what it reads of x.
      width: blocks that are read at once.
      quads: of each part of the codes that are read at once, at most.
      batch: rows of x that a program multiplies.
      maker: whose assembly is used, see `words`.
    """

    size: int
    blocks: int
    rows: int
    passes: int
    width: int
    quads: int
    batch: int
    maker: str | None

    @property
    def tile(self) -> int:
        """Rows of a program."""
        return self.rows * self.passes

    @property
    def chunks(self) -> int:
        """Runs of `width` blocks in a row; the last may overlap the one before."""
        return -(-self.blocks // self.width)

    def zeros(self, dtype: Any) -> Array:
        """An array [r, b]."""
        return jnp.zeros((self.rows, self.width), dtype)


class Inputs(NamedTuple):
    """What a program reads, as references.

    Attributes:
      where: int32 [2], the kind and the row in its stack.
      x: int32 [digits, quads of a block, batch, blocks], four bytes of a digit each.
      scales: float32 [batch, blocks], of x.
      sums: float32 [2, batch, blocks], of x over each half of a block.
      kinds: the leaves of each kind.
    """

    where: Any
    x: Any
    scales: Any
    sums: Any
    kinds: Any


def program(cut: Cut, formats: tuple[Blocks, ...], inputs: Inputs, output: Any) -> None:
    """Writes some rows of the matrix by some of x to [batch, m]."""
    tile, first = program_id(0), program_id(1) * cut.batch
    kinds = zip(formats, inputs.kinds, strict=True)
    weights = [Weights(format_, leaves, cut.maker) for format_, leaves in kinds]
    products = [_Product(cut, one, inputs, tile, first) for one in weights]
    branches = [functools.partial(product.write, output) for product in products]
    jax.lax.switch(inputs.where[0], branches)


def rows_of(cut: Cut, tile: Array) -> list[Array]:
    """The rows [r] of each pass of a program; the last program may overlap the one before."""
    start = tile * cut.tile
    if cut.size % cut.tile:
        start = jnp.minimum(start, cut.size - cut.tile)
    return [start + i * cut.rows + jnp.arange(cut.rows) for i in range(cut.passes)]


@dataclasses.dataclass(frozen=True)
class _Product:
    """The product of a program with one kind of weights.

    Attributes:
      cut, weights, inputs: see there.
      tile: the number of its rows of the matrix.
      first: its first row of x.
    """

    cut: Cut
    weights: Weights
    inputs: Inputs
    tile: Array
    first: Array

    def write(self, output: Any) -> None:
        """Computes and writes it."""
        cut, rows = self.cut, rows_of(self.cut, self.tile)
        totals: Totals = {key: cut.zeros(jnp.float32) for key in np.ndindex(cut.passes, cut.batch)}
        chunk = functools.partial(self._chunk, rows)
        totals = jax.lax.fori_loop(0, cut.chunks, chunk, totals)
        for (i, j), total in totals.items():
            output[self.first + j, rows[i]] = jnp.sum(total, axis=1)

    def _chunk(self, rows: list[Array], chunk: Array, totals: Totals) -> Totals:
        """Adds what the blocks of a chunk give."""
        cut, first = self.cut, chunk * self.cut.width
        overlaps = cut.blocks % cut.width != 0
        start = jnp.minimum(first, cut.blocks - cut.width) if overlaps else first
        blocks = (start + jnp.arange(cut.width))[None]
        places = [Place(self.inputs.where[1], row[:, None], blocks) for row in rows]
        new = self._scaled(places, self._counts(places))
        if overlaps:  # what the chunk before has counted is left out
            new = {key: jnp.where(blocks >= first, value, 0) for key, value in new.items()}
        return {key: total + new[key] for key, total in totals.items()}

    def _counts(self, places: list[Place]) -> Counts:
        """The products of codes and digits, summed over each block."""
        cut, weights = self.cut, self.weights
        keys = np.ndindex(cut.passes, weights.format.runs, cut.batch, DIGITS)
        quads = min(cut.quads, weights.quads)

        def turn(i: Array, counts: Counts) -> Counts:
            for quad in range(quads):
                counts = self._quad(places, i * quads + quad, counts)
            return counts

        zeros = {key: cut.zeros(jnp.int32) for key in keys}
        return jax.lax.fori_loop(0, weights.quads // quads, turn, zeros)

    def _quad(self, places: list[Place], quad: Array, counts: Counts) -> Counts:
        """Adds the products of one quad of each part."""
        weights, counts = self.weights, dict(counts)
        words = [weights.words(place, quad) for place in places]
        each = weights.format.count // weights.format.runs
        for part, j, digit in np.ndindex(weights.format.count, self.cut.batch, DIGITS):
            at = (digit, part * weights.quads + quad, self.first + j, places[0].each)
            x = load(self.inputs.x.at[at])
            for i in range(len(places)):
                key = (i, part // each, j, digit)
                counts[key] = dot4(words[i][part], x, counts[key], self.cut.maker)
        return counts

    def _scaled(self, places: list[Place], counts: Counts) -> Totals:
        """The sums over blocks of products of values."""
        factors = [self.weights.factors(place) for place in places]
        scaled = {}
        for i, j in np.ndindex(self.cut.passes, self.cut.batch):
            terms = [
                self._term(places[i], counts, (i, run, j), *pair)
                for run, pair in enumerate(factors[i])
            ]
            scaled[i, j] = functools.reduce(jnp.add, terms)
        return scaled

    def _term(
        self,
        place: Place,
        counts: Counts,
        at: tuple[int, int, int],
        scale: Array,
        offset: Array | None,
    ) -> Array:
        """What a run of parts gives, float32 [r, b]."""
        _, run, j = at
        row = self.first + j
        high, low = (counts[*at, digit] for digit in range(DIGITS))
        x_scale = load(self.inputs.scales.at[row, place.each])
        value = (high * BASE + low).astype(jnp.float32) * (scale * x_scale)
        if offset is None:
            return value
        halves = range(2) if self.weights.format.runs == 1 else [run]
        sums = [load(self.inputs.sums.at[half, row, place.each]) for half in halves]
        return value - offset * functools.reduce(jnp.add, sums)
