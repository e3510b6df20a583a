"""K before RoPE, K after RoPE and V of a model on a text, as every layer makes them.

The model is given an attention that keeps what it is handed. It reads an f32 cache, so that the
layers are those of the exact model, and no scores of all tokens against all are ever held: memory
is linear in the context.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from deltakv_jax.attention import RopeTables, apply_rope, attend
from deltakv_jax.cache import KVCache, advance
from deltakv_jax.codec import parse_spec
from deltakv_jax.evaluation.scoring import cut_in_pieces, piece_length
from deltakv_jax.generation.steps import empty_cache
from deltakv_jax.model import Llama
from deltakv_jax.typed import typed

ARRAYS = ("k_before_rope", "k_after_rope", "v")
"""What is captured, in the order of its axis a."""


class Captured:
    """The captured arrays of every chunk of a text: float32 [l a k t d] on the host.

    Made anew each time it is gone over, since all of them would not fit in memory.
    """

    def __init__(
        self,
        model: Llama,
        tokens: Int32[np.ndarray, "c t"],
        progress: Callable[[int], None] = lambda chunks: None,
    ):
        """Takes one chunk a row, each run alone; `progress` is told of every chunk captured."""
        self._model, self._tokens, self._progress = model, tokens, progress

    def __iter__(self) -> Iterator[np.ndarray]:
        for chunk in self._tokens:
            yield jax.device_get(capture(self._model, jax.device_put(chunk)))
            self._progress(1)


@jax.jit
@typed
def capture(model: Llama, tokens: Int32[Array, " t"]) -> Float32[Array, "l a k t d"]:
    """The arrays of one chunk, in the order of `ARRAYS`.

    Args:
      model: the weights.
      tokens: the chunk; it is run alone, from position 0.
    """
    fed, _ = cut_in_pieces(tokens, piece_length(len(tokens), sequential=False))
    config, padded = model.config, fed.size
    taken = jnp.zeros((config.layers, len(ARRAYS), config.kv_heads, padded, config.head_dim))

    def feed(carry: tuple[KVCache, Array], piece: Array) -> tuple[tuple[KVCache, Array], None]:
        positions = carry[0].lengths[:, None] + jnp.arange(piece.shape[1])
        _, (cache, taken) = model.hidden(piece, positions, carry, attend=_attend_and_keep)
        return (advance(cache, _count(piece)), taken), None

    empty = empty_cache(config, parse_spec("f32"), capacity=padded)
    (_, taken), _ = jax.lax.scan(feed, (empty, taken), fed)
    return taken[..., : len(tokens), :]


def _attend_and_keep(
    layer: Array,
    q: Array,
    k: Array,
    v: Array,
    rope: RopeTables,
    carry: tuple[KVCache, Array],
) -> tuple[Array, tuple[KVCache, Array]]:
    """`attend` on an f32 cache, with what it is handed put into the array of all layers."""
    cache, taken = carry
    start = cache.lengths[0]
    out, cache = attend(layer, q, k, v, rope, cache, counts=_count(k))
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)
    # [1 a t k d]: the batch of one stands where the layer does
    arrays = jnp.stack([k, apply_rope(k, rope), v], axis=1)
    place = (layer, 0, 0, start, 0)
    return out, (cache, jax.lax.dynamic_update_slice(taken, jnp.swapaxes(arrays, 2, 3), place))


def _count(piece: Array) -> Array:
    """All tokens of a piece: padding stands behind what is kept, and nothing there reads it."""
    return jnp.full(1, piece.shape[1], jnp.int32)
