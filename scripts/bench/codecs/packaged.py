"""The package's own cache formats as candidates, so that one table has them beside simulated ones.

Codes, refinements and bits are those of the package: only the pass over a whole chunk at once is
the bench's.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from deltakv_jax.cache import bits_per_value, make_cache
from deltakv_jax.codec import Format, KVSpec, Leaves, parse_spec
from deltakv_jax.codec.hadamard import rotate
from deltakv_jax.typed import typed
from scripts.bench.codecs.passes import Candidate
from scripts.bench.codecs.reading import Stored, Window
from scripts.bench.codecs.sides import Known, Rotation, unrotated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packaged(Candidate):
    """A cache of one spec in all layers."""

    spec: KVSpec

    def bits(self, head_dim: int, layers: int, ctx: int) -> float:
        """As the package counts the arrays of a cache for one sequence of so many tokens."""
        make = functools.partial(
            make_cache, self.spec, layers=layers, kv_heads=1, head_dim=head_dim, capacity=ctx
        )
        return bits_per_value(jax.eval_shape(make))

    def stored(
        self, layer: Array, k: Array, v: Array, rope: Rotation, known: Known
    ) -> tuple[Stored, Stored]:
        """Both sides, packed and unpacked."""
        mean = lambda name, side: known[name]["mean"][layer] if side.centre else None
        return (
            read_back(self.spec.k, k, rope, mean("k", self.spec.k)),
            read_back(self.spec.v, v, unrotated, mean("v", self.spec.v)),
        )


def packaged(spec: str) -> Packaged:
    """The candidate of a spec, which is its name."""
    return Packaged(name=spec, spec=parse_spec(spec))


@typed
def read_back(
    side: Format,
    x: Float32[Array, "b t k d"],
    rope: Rotation,
    mean: Float32[Array, "k d"] | None = None,
) -> Stored:
    """What a cache of one side holds of x before RoPE; the mean is what its centre would be."""
    centre = jnp.zeros_like(x) if mean is None else _stored_mean(mean, x)
    rows = jnp.swapaxes(rope(x - centre), 1, 2)
    leaves = _encoded(side, rows)
    packed = side.decode(leaves)
    near = _refined(side, rows, leaves) if side.window or side.sinks else packed
    window = Window(recent=side.window, sliding=True, sinks=side.sinks)
    back = lambda y: jnp.swapaxes(y, 1, 2)[:, : x.shape[1]] + rope(centre)
    return Stored(back(packed), back(near), window)


def _stored_mean(mean: Array, like: Array) -> Array:
    return jnp.broadcast_to(mean.astype(jnp.float16).astype(jnp.float32), like.shape)


def _encoded(side: Format, x: Array) -> Leaves:
    """The leaves of x [b k t d], written to an empty cache."""
    b, k, t, d = x.shape
    whole = -(-t // side.interval) * side.interval
    rows = {"token": whole, "group": whole // side.interval}
    empty = {
        key: jnp.zeros((b, k, rows[leaf.per], leaf.width), leaf.dtype)
        for key, leaf in side.leaves(d).items()
    }
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, whole - t), (0, 0)))
    new = jnp.broadcast_to(jnp.arange(whole) < t, padded.shape[:3])
    return side.encode(padded, new, empty)


def _refined(side: Format, x: Array, leaves: Leaves) -> Array:
    """What a query reads of tokens that are near."""
    refinement = side.refinement(side.refine(x, leaves))
    joined = side.join(tuple(map(jnp.add, side.terms(leaves), refinement)))
    return rotate(joined) if side.rotate else joined
