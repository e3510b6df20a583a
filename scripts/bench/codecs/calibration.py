"""What is learned of a model on a text that no figure is made of.

Means and second moments of keys and values of each layer and kv head, and the Fisher information of
the model's predictions about them: F = E[g gᵀ], g the gradient of -ln p(y) by a stored vector, y
drawn from the model itself. To second order, errors e of stored vectors cost a sum of eᵀ F e / 2
nats of KL divergence. Letters as in `reading`; l layers, i and j along head_dim.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from deltakv_jax.attention import RopeTables, apply_rope
from deltakv_jax.model import Llama
from deltakv_jax.typed import typed
from scripts.bench.codecs.passes import positions
from scripts.bench.codecs.reading import NOTHING, Stored, Window, attend_mixed
from scripts.bench.codecs.sides import SKIPPED


class Moments(NamedTuple):
    """Of one side of all layers.

    Attributes:
      mean: of keys before RoPE, or of values.
      cov: second moment about it; of keys after RoPE.
      fisher: summed over a sequence's stored tokens, for one scored token.
      far_fisher: the same where what is near is read exactly.
    """

    mean: Float32[np.ndarray, "l k d"]
    cov: Float32[np.ndarray, "l k i j"]
    fisher: Float32[np.ndarray, "l k i j"]
    far_fisher: Float32[np.ndarray, "l k i j"]


def learn(model: Llama, chunks: Int32[np.ndarray, "c t"], window: Window) -> dict[str, Moments]:
    """The moments of "k" and "v", averaged over chunks.

    Args:
      model: the weights.
      chunks: of the calibration text.
      window: what is near.
    """
    average = lambda made: jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *made)
    each = [chunk[None] for chunk in chunks]
    means = average([jax.device_get(_means(model, chunk)) for chunk in each])
    covs = average([jax.device_get(_covariances(model, chunk, means)) for chunk in each])

    def fisher(window: Window) -> dict[str, Any]:
        seen = functools.partial(_fisher, model, window=window)
        return average(
            [jax.device_get(seen(chunk, jax.random.key(i))) for i, chunk in enumerate(each)]
        )

    near, far = fisher(NOTHING), fisher(window)
    return {side: Moments(means[side], covs[side], near[side], far[side]) for side in means}


@jax.jit
@typed
def _means(model: Llama, tokens: Int32[Array, "b t"]) -> dict[str, Array]:
    mean = lambda x: jnp.mean(x[:, SKIPPED:], axis=(0, 1))
    return _of_layers(model, tokens, lambda layer, k, v, rope: {"k": mean(k), "v": mean(v)})


@jax.jit
@typed
def _covariances(
    model: Llama, tokens: Int32[Array, "b t"], means: dict[str, Array]
) -> dict[str, Array]:
    def of_layer(layer: Array, k: Array, v: Array, rope: RopeTables) -> dict[str, Array]:
        turned = apply_rope(k - means["k"][layer], rope)
        return {"k": _second(turned), "v": _second(v - means["v"][layer])}

    return _of_layers(model, tokens, of_layer)


def _second(x: Array) -> Array:
    x = x[:, SKIPPED:]
    return jnp.einsum("btki,btkj->kij", x, x) / (x.shape[0] * x.shape[1])


def _of_layers(model: Llama, tokens: Array, of_layer: Callable[..., dict[str, Array]]) -> Any:
    """`of_layer(layer, k, v, rope)` of every layer of the exact model, stacked."""

    def attend(layer: Array, q: Array, k: Array, v: Array, rope: RopeTables, taken: Any):
        found = of_layer(layer, k, v, rope)
        put = lambda stack, one: stack.at[layer].set(one)
        return _exact(q, k, v, rope), jax.tree.map(put, taken, found)

    config, (b, t) = model.config, tokens.shape
    keys = jnp.zeros((b, t, config.kv_heads, config.head_dim))
    half = jnp.zeros((b, t, config.head_dim // 2))
    rope = RopeTables(jnp.zeros((b, t), jnp.int32), half, half, half[0, 0])
    shapes = jax.eval_shape(of_layer, jnp.int32(0), keys, keys, rope)
    empty = jax.tree.map(lambda leaf: jnp.zeros((config.layers, *leaf.shape)), shapes)
    return model.hidden(tokens, positions(tokens), empty, attend=attend)[1]


def _exact(q: Array, k: Array, v: Array, rope: RopeTables) -> Array:
    turned = apply_rope(k, rope)
    return attend_mixed(apply_rope(q, rope), Stored(turned, turned, NOTHING), Stored(v, v, NOTHING))


@functools.partial(jax.jit, static_argnames="window")
@typed
def _fisher(
    model: Llama, tokens: Int32[Array, "b t"], key: Array, *, window: Window
) -> dict[str, Array]:
    config, (b, t) = model.config, tokens.shape
    none = jnp.zeros((config.layers, b, t, config.kv_heads, config.head_dim))

    def loss(errors: dict[str, Array]) -> Array:
        def attend(layer: Array, q: Array, k: Array, v: Array, rope: RopeTables, cache: None):
            k = apply_rope(k, rope)
            keys = Stored(k + errors["k"][layer], k, window)
            values = Stored(v + errors["v"][layer], v, window)
            return attend_mixed(apply_rope(q, rope), keys, values), cache

        states = model.hidden(tokens, positions(tokens), None, attend=attend)[0]
        log_p = jax.nn.log_softmax(model.logits(states[:, t // 2 : -1]))
        drawn = jax.random.categorical(key, jax.lax.stop_gradient(log_p))
        return -jnp.sum(jnp.take_along_axis(log_p, drawn[..., None], axis=-1))

    gradients = jax.grad(loss)({"k": none, "v": none})
    scored = b * (t - 1 - t // 2)
    square = lambda g: jnp.einsum("lbtki,lbtkj->lkij", g, g) / scored
    return {side: square(g) for side, g in gradients.items()}
