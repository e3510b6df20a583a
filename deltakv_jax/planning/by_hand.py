"""What a device must hold, counted by hand: the sizes of the config and the bits of the formats.

It knows no arrays, no stacks and no compiler, so that it can tell on them.
"""

import dataclasses
import math

import numpy as np

from deltakv_jax.codec import Format, KVSpec, Leaf
from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.config import LlamaConfig

_SPARE = 16
"""Rows of refinements beyond those of a window."""

_DENSE_BITS = {"f32": 32.0, "bf16": 16.0, "f16": 16.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HandCount:
    """Numbers of a model and of its cache over all devices, and the bits that each takes.

    Attributes:
      matrix_values: weights in matrices.
      norm_values: weights in norms, in float32.
      bias_values: weights in biases, in float32.
      matrix_bits: per weight in a matrix.
      cache_values: K and V of all layers, kv heads and tokens of all sequences.
      cache_bits: per value.
      tensor: devices that share matrices and biases.
      data: devices that share the sequences.
    """

    matrix_values: int
    norm_values: int
    bias_values: int
    matrix_bits: float
    cache_values: int
    cache_bits: float
    tensor: int
    data: int

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights on each device: its part of matrices and biases, and every norm."""
        shared = self.matrix_values * self.matrix_bits / 8 + 4 * self.bias_values
        return shared / self.tensor + 4 * self.norm_values

    @property
    def cache_bytes(self) -> float:
        """Bytes of cache on each device."""
        return self.cache_values * self.cache_bits / 8 / (self.tensor * self.data)

    @property
    def bytes(self) -> float:
        """Bytes of both on each device."""
        return self.weight_bytes + self.cache_bytes


def hand_count(
    config: LlamaConfig,
    weights: str,
    spec: KVSpec,
    *,
    ctx: int,
    batch: int,
    tensor: int,
    data: int,
) -> HandCount:
    """Counts a model whose matrices are all stored as `weights`, and its cache of `ctx` tokens."""
    c = config
    heads = c.heads * c.head_dim
    kv_heads = c.kv_heads * c.head_dim
    layer = c.width * (heads + 2 * kv_heads) + heads * c.width + 3 * c.width * c.ffn
    embeddings = (1 if c.tied else 2) * c.vocab_size * c.width
    norms = 2 * c.width + (2 * c.head_dim if c.qk_norm else 0)
    biases = heads + 2 * kv_heads if c.qkv_bias else 0
    return HandCount(
        matrix_values=embeddings + c.layers * layer,
        norm_values=c.layers * norms + c.width,
        bias_values=c.layers * biases,
        matrix_bits=matrix_bits(weights),
        cache_values=2 * c.layers * kv_heads * ctx * batch,
        cache_bits=(_bits(spec.k, c.head_dim, ctx) + _bits(spec.v, c.head_dim, ctx)) / 2,
        tensor=tensor,
        data=data,
    )


def matrix_bits(weights: str) -> float:
    """Bits per weight of a matrix that is stored as `weights`: "f32", or a name of `MATRICES`."""
    if weights in _DENSE_BITS:
        return _DENSE_BITS[weights]
    n = 1024  # a multiple of every block
    rows = MATRICES[weights].leaves(n).values()
    return sum(8 * np.dtype(row.dtype).itemsize * math.prod(row.shape) for row in rows) / n


def _bits(side: Format, head_dim: int, ctx: int) -> float:
    """Bits per value of one side: full groups, refinements and means."""
    tokens = {"token": 1, "group": side.interval}
    packed = sum(_row_bits(leaf) / tokens[leaf.per] for leaf in side.leaves(head_dim).values())
    near_rows = side.sinks + (side.window + _SPARE if side.window else 0)
    near = near_rows * sum(map(_row_bits, side.near_leaves(head_dim).values()))
    mean = 16 * head_dim if side.centre else 0
    return (packed + (near + mean) / ctx) / head_dim


def _row_bits(leaf: Leaf) -> int:
    return 8 * np.dtype(leaf.dtype).itemsize * leaf.width
