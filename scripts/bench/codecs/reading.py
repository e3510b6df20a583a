"""What attention reads in place of exact keys and values, a whole chunk at a time.

A simulated cache gives, for each position, what it would hold packed, and what it would hold in
more bits where a token is still near. Attention mixes the two pair by pair, so a pass over a chunk
at once reads what a cache would give to tokens that come one by one.

Letters: b chunks, t query token, s stored token, h query heads, k kv heads, d head_dim.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from deltakv_jax.typed import typed

_QUERIES = 256  # of a block; keys behind its last one are not multiplied


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The positions that a token reads in more bits, beside their packed form.

    Attributes:
      recent: N, tokens of a group, or the last ones.
      sliding: token t finds the N last tokens, its own included; else those of its own group of N.
      sinks: tokens from the sequence's beginning.
      bits: of a value there, beside those of its packed slot, which it keeps.
    """

    recent: int = 0
    sliding: bool = False
    sinks: int = 0
    bits: float = 16

    def near(self, t: Array, s: Array) -> Array:
        """Whether token t finds token s there."""
        sink = jnp.broadcast_to(s < self.sinks, jnp.broadcast_shapes(t.shape, s.shape))
        if not self.recent:
            return sink
        if self.sliding:
            return sink | (t - s < self.recent)
        return sink | (t // self.recent == s // self.recent)

    def bits_over(self, ctx: int) -> float:
        """Its bits, shared among all values of a context."""
        return self.bits * (self.recent + self.sinks) / ctx


NOTHING = Window()
"""Every token is read as it is packed."""


class Stored(NamedTuple):
    """One side of a layer, [b s k d], keys after RoPE: what is packed, and what the window has."""

    packed: Array
    near: Array
    window: Window

    def until(self, end: int) -> "Stored":
        """The tokens before `end`."""
        return self._replace(packed=self.packed[:, :end], near=self.near[:, :end])


@typed
def attend_mixed(q: Float32[Array, "b t h d"], k: Stored, v: Stored) -> Float32[Array, "b t h d"]:
    """Causal attention that reads `near` where a side's window says so, else `packed`."""
    parts = [
        _attend_block(q[:, start : start + _QUERIES], start, k, v)
        for start in range(0, q.shape[1], _QUERIES)
    ]
    return jnp.concatenate(parts, axis=1)


def _attend_block(q: Array, start: int, k: Stored, v: Stored) -> Array:
    """The queries from `start` on, over all tokens up to the last of them."""
    b, count, h, d = q.shape
    end = start + count
    t = start + jnp.arange(count)[:, None]
    grouped = q.reshape(b, count, k.packed.shape[2], -1, d) * d**-0.5
    scores = jnp.where(jnp.arange(end) <= t, _scores(grouped, t, k.until(end)), -jnp.inf)
    return _mixed(jax.nn.softmax(scores, axis=-1), t, v.until(end)).reshape(b, count, h, d)


def _scores(q: Array, t: Array, k: Stored) -> Array:
    dot = lambda keys: jnp.einsum("btkgd,bskd->bkgts", q, keys, precision="highest")
    scores = dot(k.packed)
    for part, near in _near_parts(t, k):
        exact = dot(k.near[:, part])
        scores = scores.at[..., part].set(jnp.where(near, exact, scores[..., part]))
    return scores


def _mixed(weights: Array, t: Array, v: Stored) -> Array:
    mix = lambda p, values: jnp.einsum("bkgts,bskd->btkgd", p, values, precision="highest")
    out = mix(weights, v.packed)
    for part, near in _near_parts(t, v):
        difference = v.near[:, part] - v.packed[:, part]
        out = out + mix(jnp.where(near, weights[..., part], 0), difference)
    return out


def _near_parts(t: Array, side: Stored) -> list[tuple[slice, Array]]:
    """Ranges of tokens that have all near ones, without overlap, and which of them are near."""
    window, end = side.window, side.packed.shape[1]
    start = end - t.shape[0]
    first = max(0, start - window.recent) if window.recent else end
    ranges = (0, min(window.sinks, first)), (first, end)
    return [(slice(*one), window.near(t, jnp.arange(*one))) for one in ranges if one[0] < one[1]]
