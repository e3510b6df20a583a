"""What a calibration learns of a model on a text: means of its channels, and costs of errors.

Of keys and values of each layer and kv head: the mean and the mean square of every channel, and how
much the model's predictions tell of them, the trace of the Fisher information F = E[g gᵀ], g the
gradient of -ln p(y) by a stored vector, y drawn from the model itself. To second order, errors e of
all stored vectors cost the sum of eᵀ F e / 2 nats of KL divergence; white errors need the trace
alone, and before RoPE they are as after it.

Letters: l layers, k kv heads, d head_dim, t tokens of a chunk, c chunks.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64, Int32

from deltakv_jax.attention import RopeTables
from deltakv_jax.model import Llama
from deltakv_jax.training.attention import attend_blocks
from deltakv_jax.typed import typed

SKIPPED = 4
"""Tokens at a sequence's beginning that are like no others: no mean is made of them."""


class Learned(NamedTuple):
    """Of one side, K before RoPE or V, averaged over chunks.

    Attributes:
      mean: of each channel, the first `SKIPPED` tokens left out.
      square: the same of the squares.
      information: the trace of F, summed over a sequence's stored tokens, for one scored token.
    """

    mean: Float64[np.ndarray, "l k d"]
    square: Float64[np.ndarray, "l k d"]
    information: Float64[np.ndarray, "l k"]

    def cost(self, *, centred: bool) -> Float64[np.ndarray, " l"]:
        """Divergence in nats for each unit of relative squared error, white along head_dim.

        Args:
          centred: relative to the squares of what is left without the mean, or of all.
        """
        packed = self.square - self.mean**2 if centred else self.square
        energy = packed.sum(axis=-1)
        return (self.information * energy).sum(axis=-1) / (2 * self.mean.shape[-1])

    def mean_share(self) -> Float64[np.ndarray, " l"]:
        """The norm of the mean over the root mean square of what it is the mean of."""
        total = lambda x: x.sum(axis=(1, 2))
        return np.sqrt(total(self.mean**2) / total(self.square))


def learn(
    model: Llama,
    chunks: Int32[np.ndarray, "c t"],
    progress: Callable[[int], None] = lambda chunks: None,
) -> dict[str, Learned]:
    """What is learned of "k" and "v".

    Args:
      model: the weights.
      chunks: of the text, each run alone: once forward, and once back and forth.
      progress: told of every pass that is done.
    """

    def passes(run: Callable[[int, Array], Any]) -> Iterable[Any]:
        for number, chunk in enumerate(chunks):
            yield jax.device_get(run(number, jax.device_put(chunk)))
            progress(1)

    drawn = lambda number, chunk: chunk_information(model, chunk, jax.random.key(number))
    with jax.default_matmul_precision("highest"):  # a GPU would round to TF32
        moments = _average(passes(lambda number, chunk: chunk_moments(model, chunk)))
        information = _average(passes(drawn))
    return {
        side: Learned(mean, square, information[side]) for side, (mean, square) in moments.items()
    }


def _average(made: Iterable[Any]) -> Any:
    """Of trees of arrays, in float64."""
    total, count = None, 0
    for one in made:
        one, count = jax.tree.map(lambda x: x.astype(np.float64), one), count + 1
        total = one if total is None else jax.tree.map(np.add, total, one)
    return jax.tree.map(lambda x: x / count, total)


@jax.jit
@typed
def chunk_moments(
    model: Llama, tokens: Int32[Array, " t"]
) -> dict[str, tuple[Float32[Array, "l k d"], Float32[Array, "l k d"]]]:
    """The mean and the mean square of each channel of "k" and "v" over one chunk."""
    config = model.config

    def attend(layer: Array, q: Array, k: Array, v: Array, rope: RopeTables, taken: Any):
        found = {side: _moments(x[:, SKIPPED:]) for side, x in (("k", k), ("v", v))}
        taken = jax.tree.map(lambda all_, one: all_.at[layer].set(one), taken, found)
        return attend_blocks(layer, q, k, v, rope)[0], taken

    none = jnp.zeros((config.layers, config.kv_heads, config.head_dim))
    empty = {"k": (none, none), "v": (none, none)}
    return model.hidden(tokens[None], _positions(tokens), empty, attend=attend)[1]


def _moments(x: Array) -> tuple[Array, Array]:
    """Over the tokens of [1 t k d]."""
    return jnp.mean(x, axis=(0, 1)), jnp.mean(x * x, axis=(0, 1))


@jax.jit
@typed
def chunk_information(
    model: Llama, tokens: Int32[Array, " t"], key: Array
) -> dict[str, Float32[Array, "l k"]]:
    """The trace of F of "k" and "v", of what the second half of a chunk predicts.

    Args:
      model: the weights.
      tokens: the chunk.
      key: what the predicted tokens are drawn with.
    """
    config, t = model.config, len(tokens)
    first, attention = t // 2, jax.checkpoint(attend_blocks)

    def loss(errors: dict[str, Array]) -> Array:
        def attend(layer: Array, q: Array, k: Array, v: Array, rope: RopeTables, cache: None):
            return attention(layer, q, k + errors["k"][layer], v + errors["v"][layer], rope)

        states = model.hidden(tokens[None], _positions(tokens), None, attend=attend)[0][0]
        log_p = jax.nn.log_softmax(model.logits(states[first:-1]))
        drawn = jax.random.categorical(key, jax.lax.stop_gradient(log_p))
        return -jnp.sum(jnp.take_along_axis(log_p, drawn[:, None], axis=-1))

    none = jnp.zeros((config.layers, 1, t, config.kv_heads, config.head_dim))
    gradients = jax.grad(loss)({"k": none, "v": none})
    return {side: jnp.sum(g * g, axis=(1, 2, 4)) / (t - 1 - first) for side, g in gradients.items()}


def _positions(tokens: Array) -> Array:
    return jnp.arange(len(tokens))[None]
