"""Llama: RMSNorm, rotary attention with grouped heads, SwiGLU (arXiv 2302.13971, 2407.21783).

With biases of q, k and v it is Qwen2 (arXiv 2407.10671), with a norm of q and k Qwen3 (2505.09388).

A `Llama` is a pytree of weights with a static config, so it goes through `jax.jit` as an argument.
The residual stream is float32; a product takes its input in the weights' dtype and sums in float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from deltakv_jax.attention.rope import RopeTables, rope_tables
from deltakv_jax.config import LlamaConfig
from deltakv_jax.linear import Matrix, Stack
from deltakv_jax.typed import typed

# The attention that a model is given: (layer, q [b t h d], k [b t k d], v [b t k d], the tables of
# the tokens' positions, cache) -> (output [b t h d], next cache). q and k come before RoPE.
Attend = Callable[[Any, jax.Array, jax.Array, jax.Array, RopeTables, Any], tuple[jax.Array, Any]]


def identity(x: jax.Array) -> jax.Array:
    """What one device does where several would have to meet."""
    return x


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Where a model meets that lies on several devices; as it stands, what one device does.

    Attributes:
      rows: of a matrix [v, w], of which each device may have a part of the rows.
      reduce: sums an output [b t w] whose terms lie on several devices.
      gather: joins logits [*lead v] whose parts lie on several devices.
    """

    rows: Callable[[Matrix, jax.Array], jax.Array] = Matrix.rows
    reduce: Callable[[jax.Array], jax.Array] = identity
    gather: Callable[[jax.Array], jax.Array] = identity


ONE_DEVICE = Collectives()


class Llama(nnx.Module):
    """Weights of a Llama; `hidden` runs its blocks and `logits` its head.

    Attributes:
      config: static.
      embedding: a `Matrix` [v, w], the head too if `config.tied`.
      attention_norm, ffn_norm: float32 [l, w].
      query, key, value, output, gate, up, down: one `Stack` each, over all layers.
      query_bias, key_bias, value_bias: float32 [l, out], or None without `config.qkv_bias`.
      query_norm, key_norm: float32 [l, d], the same for all heads, or None without
        `config.qk_norm`.
      final_norm: float32 [w].
      head: a `Matrix` [v, w], or None if tied.
    """

    def __init__(self, config: LlamaConfig, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs):
        """Draws random weights: normal, with deviation 1 / sqrt(inputs)."""
        draw = lambda *shape: jax.random.normal(rngs.params(), shape, dtype) * shape[-1] ** -0.5
        stack = lambda out, size: Stack([draw(config.layers, out, size)])
        ones = lambda *shape: nnx.Param(jnp.ones(shape, jnp.float32))
        zeros = lambda *shape: nnx.Param(jnp.zeros(shape, jnp.float32))
        width, q_width = config.width, config.heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim
        self.config = config
        self.embedding = Matrix(draw(config.vocab_size, width))
        self.attention_norm = ones(config.layers, width)
        self.query, self.key = stack(q_width, width), stack(kv_width, width)
        self.value, self.output = stack(kv_width, width), stack(width, q_width)
        bias = lambda size: zeros(config.layers, size) if config.qkv_bias else None
        self.query_bias, self.key_bias = bias(q_width), bias(kv_width)
        self.value_bias = bias(kv_width)
        head_norm = lambda: ones(config.layers, config.head_dim) if config.qk_norm else None
        self.query_norm, self.key_norm = head_norm(), head_norm()
        self.ffn_norm = ones(config.layers, width)
        self.gate, self.up = stack(config.ffn, width), stack(config.ffn, width)
        self.down = stack(width, config.ffn)
        self.final_norm = ones(width)
        self.head = None if config.tied else Matrix(draw(config.vocab_size, width))

    @typed
    def hidden(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        cache: Any,
        *,
        attend: Attend,
        collectives: Collectives = ONE_DEVICE,
    ) -> tuple[Float32[Array, "b t w"], Any]:
        """The residual stream after the final norm, and the cache that `attend` left.

        Args:
          tokens: ids below `config.vocab_size`.
          positions: of each token in its own sequence.
          cache: whatever `attend` takes; None for `attend_plain`.
          attend: the attention.
          collectives: where the devices meet among which the weights are split.
        """
        rope = rope_tables(self.config, positions)

        def block(carry: tuple[jax.Array, Any], layer: jax.Array):
            x, cache = carry
            mixed, cache = self._attention(layer, x, rope, cache, attend)
            x = x + collectives.reduce(mixed)
            return (x + collectives.reduce(self._feed_forward(layer, x)), cache), None

        x = collectives.rows(self.embedding, tokens)
        (x, cache), _ = jax.lax.scan(block, (x, cache), jnp.arange(self.config.layers))
        return rms_norm(x, self.final_norm[...], self.config.norm_eps), cache

    @typed
    def logits(
        self, hidden: Float[Array, "*lead w"], collectives: Collectives = ONE_DEVICE
    ) -> Float32[Array, "*lead v"]:
        """The head's scores of every token of the vocabulary."""
        head = self.embedding if self.head is None else self.head
        return collectives.gather(head.product(hidden))

    def _attention(self, layer, x, rope: RopeTables, cache, attend: Attend):
        x = rms_norm(x, self.attention_norm[...][layer], self.config.norm_eps)
        q = self._heads(layer, x, self.query, self.query_bias, self.query_norm)
        k = self._heads(layer, x, self.key, self.key_bias, self.key_norm)
        v = self._heads(layer, x, self.value, self.value_bias, None)
        out, cache = attend(layer, q, k, v, rope, cache)
        return self.output.product(out.reshape(*x.shape[:-1], -1), layer), cache

    def _heads(self, layer, x, matrices: Stack, bias: nnx.Param | None, norm: nnx.Param | None):
        """The projection of x, split into heads [b t heads d]."""
        y = matrices.product(x, layer)
        if bias is not None:
            y = y + bias[...][layer]
        y = y.reshape(*x.shape[:-1], -1, self.config.head_dim)
        return y if norm is None else rms_norm(y, norm[...][layer], self.config.norm_eps)

    def _feed_forward(self, layer, x):
        x = rms_norm(x, self.ffn_norm[...][layer], self.config.norm_eps)
        gated = jax.nn.silu(self.gate.product(x, layer)) * self.up.product(x, layer)
        return self.down.product(gated, layer)


@typed
def rms_norm(
    x: Float32[Array, "*lead w"], scale: Float32[Array, " w"], eps: float
) -> Float32[Array, "*lead w"]:
    """Returns x / sqrt(mean(x²) + eps) * scale, the mean over the last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale
