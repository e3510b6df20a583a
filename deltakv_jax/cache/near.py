"""The tokens that a query reads with their refinement: the first ones and the last ones."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from deltakv_jax.cache.state import KVCache, Sides, ring_rows, take_rows
from deltakv_jax.codec import Format, KVSpec, Leaves, Planes
from deltakv_jax.typed import typed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Near:
    """Reconstructions of the sinks, and of the tokens of which any query's window is a part.

    Attributes:
      k, v: float32 planes [b, k, n, …] in the stored frame.
      tokens: int32 [b, n], the sinks first; where there is none, one that no query sees.
      window: static; tokens that a query reads from here, its own included.
      sinks: static; likewise the first ones.
    """

    k: Planes
    v: Planes
    tokens: Array
    window: int = dataclasses.field(metadata={"static": True})
    sinks: int = dataclasses.field(metadata={"static": True})

    def of_queries(self, start: Array, size: int) -> "Near":
        """What `size` queries read from query `start` on, of those that `near_tokens` was for."""
        rows = self.tokens.shape[1] - self.sinks
        count = min(rows, size + max(self.window - 1, 0))

        def take(x: Array, axis: int) -> Array:
            first, recent = jnp.split(x, [self.sinks], axis=axis)
            part = jax.lax.dynamic_slice_in_dim(recent, start, count, axis)
            return jnp.concatenate([first, part], axis=axis)

        k, v = (tuple(take(plane, 2) for plane in planes) for planes in (self.k, self.v))
        return dataclasses.replace(self, k=k, v=v, tokens=take(self.tokens, 1))

    def seen(self, positions: Int32[Array, "b t"]) -> Array:
        """Bool [b, t, n]: what a query at each position reads here, each token once."""
        t, s = positions[..., None], self.tokens[:, None]
        recent = s > t - self.window
        is_sink = jnp.arange(self.tokens.shape[1]) < self.sinks
        return (s >= 0) & (s <= t) & (is_sink != recent)


def window_of(spec: KVSpec) -> tuple[int, int]:
    """The window and the sinks of a layer: of either side, or of both, which then agree."""
    return max((side.window, side.sinks) for side in (spec.k, spec.v))


@typed
def near_tokens(
    cache: KVCache, kind: int, row: Int32[Array, ""], newest: Int32[Array, " b"], band: Sides | None
) -> Near | None:
    """What is near in a layer of this kind; None without a window.

    Args:
      cache: the cache, its newest tokens written.
      kind: index of the stack.
      row: the layer's row in that stack.
      newest: the last token of each sequence.
      band: as `write_and_refine` gives it, of several new tokens; None where only one reads.
    """
    spec, stack = cache.layout.kinds[kind], cache.stacks[kind]
    window, sinks = window_of(spec)
    if not window and not sinks:
        return None
    recent = _recent(spec, newest, band)
    first = jnp.broadcast_to(jnp.arange(sinks), (len(newest), sinks))
    tokens = jnp.concatenate([first, recent], axis=1)
    side = lambda fmt, leaves, near, rows: _side(fmt, leaves, near, rows, row, tokens, sinks)
    bands = band or Sides()
    k = side(spec.k, stack.k, stack.near.k, bands.k)
    v = side(spec.v, stack.v, stack.near.v, bands.v)
    return Near(k, v, tokens, window, sinks)


def _recent(spec: KVSpec, newest: Array, band: Sides | None) -> Array:
    """int32 [b, n]: the tokens of the window of the newest one, or of all that are new."""
    window, _ = window_of(spec)
    rows = [leaf.shape[2] for leaf in jax.tree.leaves(band)] or [window]
    return newest[:, None] - jnp.arange(rows[0] - 1, -1, -1)


def _side(
    fmt: Format, leaves: Leaves, near: Leaves, band: Leaves, row: Array, tokens: Array, sinks: int
) -> Planes:
    """One side of these tokens, refined where it has refinements."""
    layer = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, row, keepdims=False)
    packed = fmt.terms({key: _taken(x, row, tokens) for key, x in leaves.items()})
    if not near:
        return packed
    held = {key: layer(leaf) for key, leaf in near.items()}
    at = ring_rows(fmt, tokens[:, sinks:])
    recent = band or {key: take_rows(leaf, at) for key, leaf in held.items()}
    first = {key: leaf[:, :, :sinks] for key, leaf in held.items()}
    rows = {key: jnp.concatenate([first[key], recent[key]], axis=2) for key in near}
    return tuple(map(jnp.add, packed, fmt.refinement(rows)))


def _taken(leaf: Array, row: Array, tokens: Array) -> Array:
    """[b, k, n, width]: the rows of these tokens, out of the leaf of all layers.

    Never out of the layer, which would be copied first.
    """
    inside = jnp.clip(tokens, 0, leaf.shape[3] - 1)
    batch = jnp.arange(len(tokens))[:, None]
    return jnp.swapaxes(leaf[row, batch, :, inside], 1, 2)
