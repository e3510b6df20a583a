"""Passes of the model over chunks that read a simulated cache in every layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from deltakv_jax.attention import RopeTables, apply_rope
from deltakv_jax.model import Llama
from deltakv_jax.typed import typed
from scripts.bench.codecs.groups import Predicted
from scripts.bench.codecs.reading import NOTHING, Stored, Window, attend_mixed
from scripts.bench.codecs.sides import Known, Quantizer, Rotation, Side, unrotated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A cache as attention would read it. Hashable, so static under `jit`.

    Attributes:
      name: in tables.
      family: of candidates that belong together in a table.
      note: what its figures mean.
    """

    name: str
    family: str = ""
    note: str = ""

    def bits(self, head_dim: int, layers: int, ctx: int) -> float:
        """Stored bits of a value of a context, everything counted."""
        raise NotImplementedError

    def stored(
        self, layer: Array, k: Array, v: Array, rope: Rotation, known: Known
    ) -> tuple[Stored, Stored]:
        """What the cache gives for keys before RoPE and values of a layer, [b t k d]."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulated(Candidate):
    """One that is made of sides; nothing is packed.

    Attributes:
      k, v: how each side is packed, in all layers or in each.
      window: of K, and of V unless `v_window` is there.
      v_window: of V.
      enhancement: what the window adds to a packed value, the round trip of its error; None where
        the window holds float16.
    """

    k: Side | tuple[Side, ...]
    v: Side | tuple[Side, ...]
    window: Window = NOTHING
    v_window: Window | None = None
    enhancement: Quantizer | None = None

    def bits(self, head_dim: int, layers: int, ctx: int) -> float:
        """Of packed values, side information and windows."""
        sides = [side for both in (self.k, self.v) for side in _of_layers(both, layers)]
        packed = sum(side.bits(head_dim, ctx) for side in sides) / len(sides)
        windows = (self.window, self.v_window or self.window)
        return packed + sum(window.bits_over(ctx) for window in windows) / 2

    def stored(
        self, layer: Array, k: Array, v: Array, rope: Rotation, known: Known
    ) -> tuple[Stored, Stored]:
        """What the sides give."""
        of_layer = jax.tree.map(lambda leaf: leaf[layer], known)
        keys = _read_back(self.k, layer, k, rope, of_layer.get("k", {}))
        values = _read_back(self.v, layer, v, unrotated, of_layer.get("v", {}))
        near = lambda exact, packed: _near(self.enhancement, exact, packed)
        return (
            Stored(keys, near(rope(k), keys), self.window),
            Stored(values, near(v, values), self.v_window or self.window),
        )


def _of_layers(side: Side | tuple[Side, ...], layers: int) -> tuple[Side, ...]:
    return side if isinstance(side, tuple) else (side,) * layers


def _read_back(
    sides: Side | tuple[Side, ...], layer: Array, x: Array, rope: Rotation, known: Known
) -> Array:
    if not isinstance(sides, tuple):
        return sides.read_back(x, rope, known)
    kinds = tuple(dict.fromkeys(sides))
    kind_of = jnp.array([kinds.index(side) for side in sides])
    branches = [functools.partial(kind.read_back, rope=rope, known=known) for kind in kinds]
    return jax.lax.switch(kind_of[layer], branches, x)


def _near(enhancement: Quantizer | None, exact: Array, packed: Array) -> Array:
    if enhancement is None:
        return exact.astype(jnp.float16).astype(jnp.float32)
    return packed + enhancement(exact - packed)


@functools.partial(jax.jit, static_argnames="candidate")
@typed
def hidden_states(
    model: Llama, tokens: Int32[Array, "b t"], known: Known, *, candidate: Candidate
) -> Float32[Array, "b t w"]:
    """The final hidden states of chunks, each alone, read through the candidate's cache.

    Args:
      model: the weights.
      tokens: chunks.
      known: of each side, what calibration has learned, leaves [l …].
      candidate: the simulated cache.
    """

    def attend(layer: Array, q: Array, k: Array, v: Array, rope: RopeTables, cache: None):
        turn = functools.partial(apply_rope, tables=rope)
        return attend_mixed(turn(q), *candidate.stored(layer, k, v, turn, known)), cache

    return model.hidden(tokens, positions(tokens), None, attend=attend)[0]


@functools.partial(jax.jit, static_argnames="candidate")
@typed
def layer_squares(
    model: Llama, tokens: Int32[Array, "b t"], known: Known, *, candidate: Candidate
) -> Float32[Array, "l 3 2"]:
    """Summed squares of the errors and of the exact values of packed K and V and of the output.

    The layers are those of the exact model: each layer's errors are its own.
    """

    def attend(layer: Array, q: Array, k: Array, v: Array, rope: RopeTables, squares: Array):
        turn = functools.partial(apply_rope, tables=rope)
        keys, values = candidate.stored(layer, k, v, turn, known)
        exact = attend_mixed(turn(q), *(Stored(x, x, NOTHING) for x in (turn(k), v)))
        got = attend_mixed(turn(q), keys, values)
        pairs = (keys.packed, turn(k)), (values.packed, v), (got, exact)
        sums = jnp.array([[jnp.sum((a - b) ** 2), jnp.sum(b**2)] for a, b in pairs])
        return exact, squares.at[layer].set(sums)

    empty = jnp.zeros((model.config.layers, 3, 2))
    return model.hidden(tokens, positions(tokens), empty, attend=attend)[1]


@functools.partial(jax.jit, static_argnames=("side", "name"))
@typed
def layer_choices(
    model: Llama, tokens: Int32[Array, "b t"], known: Known, *, side: Predicted, name: str
) -> Float32[Array, "l c"]:
    """How often each coefficient is chosen in each layer of the exact model, for K or for V."""

    def attend(layer: Array, q: Array, k: Array, v: Array, rope: RopeTables, shares: Array):
        turn = functools.partial(apply_rope, tables=rope)
        of_layer = jax.tree.map(lambda leaf: leaf[layer], known[name])
        found = side.choices(*((k, turn) if name == "k" else (v, unrotated)), of_layer)
        exact = attend_mixed(turn(q), *(Stored(x, x, NOTHING) for x in (turn(k), v)))
        return exact, shares.at[layer].set(found)

    empty = jnp.zeros((model.config.layers, len(side.coefficients)))
    return model.hidden(tokens, positions(tokens), empty, attend=attend)[1]


def positions(tokens: Array) -> Array:
    """Of tokens [b t], from 0 in every chunk."""
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
