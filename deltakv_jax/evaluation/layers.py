"""What a format does to K, V and the attention output of each layer by itself.

The model runs once, on an exact cache. Beside it every format's cache is fed the same keys and
values and asked for the same attention, so that no layer bears the errors of those before it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32

from deltakv_jax.attention import RopeTables, attend
from deltakv_jax.attention.centre import read_values
from deltakv_jax.attention.rope import inverse_frequencies
from deltakv_jax.cache import KVCache, Sides, advance
from deltakv_jax.codec import CacheSpec, parse_spec
from deltakv_jax.evaluation.scoring import cut_in_pieces
from deltakv_jax.generation.steps import cache_for
from deltakv_jax.model import Collectives, Llama
from deltakv_jax.parallel.collectives import collectives_on, spread
from deltakv_jax.parallel.sharding import BATCH, cache_specs, model_specs
from deltakv_jax.typed import typed


class _Beside(NamedTuple):
    """What goes through the model in place of a cache.

    Attributes:
      exact: holds keys and values as they are.
      caches: one per format.
      squares: float32 [f l 2], squared errors of the attention output and squared outputs, summed.
    """

    exact: KVCache
    caches: tuple[KVCache, ...]
    squares: Array


@functools.partial(jax.jit, static_argnames=("specs", "piece", "mesh"))
@typed
def layer_squares(
    model: Llama,
    tokens: Int32[Array, "*data ctx"],
    centre: Sides | None = None,
    *,
    specs: tuple[CacheSpec, ...],
    piece: int,
    mesh: Mesh | None = None,
) -> Float32[Array, "*data f l 3 2"]:
    """Summed squares of the errors and of the exact values, of K, V and the attention output.

    Args:
      model: the weights.
      tokens: one chunk, or on a mesh one for each row of devices.
      centre: the means, as `make_cache` takes them.
      specs: the formats.
      piece: tokens fed at once.
      mesh: the devices that share the model.
    """
    on, ctx, layers = collectives_on(mesh), tokens.shape[-1], model.config.layers

    def run(model: Llama, tokens: Array, exact: KVCache, caches: tuple[KVCache, ...]) -> Array:
        def feed(beside: _Beside, at: tuple[Array, Array]) -> tuple[_Beside, None]:
            return _feed(model, *at, beside, on), None

        empty = _Beside(exact, caches, jnp.zeros((len(specs), layers, 2)))
        beside, _ = jax.lax.scan(feed, empty, cut_in_pieces(tokens.reshape(ctx), piece))
        inverse = jnp.asarray(inverse_frequencies(model.config))
        of_layer = lambda layer: _stored_squares(layer, inverse, beside)
        stored = jax.lax.map(of_layer, jnp.arange(layers))
        stored = jnp.moveaxis(stored, 0, 1)
        squares = jnp.concatenate([stored, beside.squares[:, :, None]], axis=2)
        return on.reduce(squares).reshape(*tokens.shape[:-1], *squares.shape)

    sizes = {"capacity": ctx, "batch": tokens.size // ctx, "centre": centre}
    make = functools.partial(cache_for, model.config, **sizes)
    exact, caches = make(parse_spec("f32")), tuple(map(make, specs))
    cached = (cache_specs(exact), tuple(map(cache_specs, caches)))
    inputs = (model_specs(model), BATCH, *cached)
    return spread(mesh, run, inputs, BATCH)(model, tokens, exact, caches)


def _feed(model: Llama, tokens: Array, counts: Array, beside: _Beside, on: Collectives) -> _Beside:
    positions = beside.exact.lengths[:, None] + jnp.arange(tokens.shape[1])
    beside_each = functools.partial(_attend_beside, counts=counts)
    _, beside = model.hidden(tokens, positions, beside, attend=beside_each, collectives=on)
    caches = tuple(advance(cache, counts) for cache in beside.caches)
    return beside._replace(exact=advance(beside.exact, counts), caches=caches)


def _attend_beside(
    layer: Array, q: Array, k: Array, v: Array, rope: RopeTables, beside: _Beside, *, counts: Array
) -> tuple[Array, _Beside]:
    """The exact output; each format's is compared with it."""
    want, exact = attend(layer, q, k, v, rope, beside.exact, counts=counts)
    outputs, caches = zip(
        *(attend(layer, q, k, v, rope, cache, counts=counts) for cache in beside.caches),
        strict=True,
    )
    real = (jnp.arange(q.shape[1]) < counts[:, None])[..., None, None]
    sums = jnp.stack([_squares(got, want, real) for got in outputs])
    return want, _Beside(exact, caches, beside.squares.at[:, layer].add(sums))


def _stored_squares(layer: Array, inverse: Array, beside: _Beside) -> Array:
    """Of K and V as they are packed in the full caches: [f 2 2]."""
    values = lambda cache: read_values(cache, layer, inverse)
    exact = values(beside.exact)
    of_cache = lambda cache: jnp.stack(
        [_squares(*pair, True) for pair in zip(values(cache), exact, strict=True)]
    )
    return jnp.stack([of_cache(cache) for cache in beside.caches])


def _squares(got: Array, want: Array, real: Array | bool) -> Array:
    error, value = (jnp.sum(jnp.where(real, x, 0) ** 2) for x in (got - want, want))
    return jnp.stack([error, value])
