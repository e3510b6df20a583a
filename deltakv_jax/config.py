"""What a Llama is, apart from its weights."""

import dataclasses
import math

from deltakv_jax.errors import UserError

_SIZES = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn", "context")
_LARGEST = 2**31 - 1  # sizes and positions are int32 on the device


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's stretching of the low RoPE frequencies ("llama3" in Hugging Face).

    Attributes:
      factor: by how much the lowest frequencies are divided.
      low_freq_factor: wavelengths above `original_context / low_freq_factor` are divided.
      high_freq_factor: wavelengths below `original_context / high_freq_factor` are kept.
      original_context: tokens of context that the model was first trained for.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self):
        if self.original_context < 1 or not 1 <= self.factor < math.inf:
            raise UserError(f"factor and original_context must be at least 1 in {self}")
        if not 0 < self.low_freq_factor < self.high_freq_factor < math.inf:
            raise UserError(f"low_freq_factor must lie between 0 and high_freq_factor in {self}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """The sizes and constants of a Llama. Hashable, so static under `jit`.

    Attributes:
      vocab_size: rows of the embedding.
      width: size of the residual stream.
      layers: number of transformer blocks.
      heads: query heads.
      kv_heads: key and value heads, a divisor of `heads`.
      head_dim: values per head, even.
      ffn: hidden size of SwiGLU.
      context: tokens that the model was trained for.
      rope_theta: base of the RoPE frequencies.
      norm_eps: added to the mean square in RMSNorm.
      tied: whether the head is the embedding.
      rope_scaling: Llama 3.1's frequency scaling, or None.
      qkv_bias: whether queries, keys and values have a bias (Qwen2).
      qk_norm: whether each head of q and k goes through an RMSNorm before RoPE (Qwen3).
      rope_factors: divisors of the RoPE frequencies, one for each pair of values of a head, as GGUF
        files store any scaling; None where there is none, or `rope_scaling` says it.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    rope_theta: float
    norm_eps: float
    tied: bool
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_factors: tuple[float, ...] | None = None

    def __post_init__(self):
        for field in _SIZES:
            if not 1 <= getattr(self, field) <= _LARGEST:
                got = getattr(self, field)
                raise UserError(f"{field} must be from 1 to {_LARGEST}, got {got}")
        for field in ("rope_theta", "norm_eps"):
            if not 0 < getattr(self, field) < math.inf:
                got = getattr(self, field)
                raise UserError(f"{field} must be positive and finite, got {got}")
        if self.heads % self.kv_heads:
            raise UserError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for RoPE, got {self.head_dim}")
        if self.rope_factors is not None:
            self._check_rope_factors(self.rope_factors)

    def _check_rope_factors(self, factors: tuple[float, ...]) -> None:
        if self.rope_scaling is not None:
            raise UserError("rope_factors and rope_scaling exclude each other")
        if len(factors) != self.head_dim // 2:
            raise UserError(
                f"rope_factors must be {self.head_dim // 2}, half of head_dim, got {len(factors)}"
            )
        for factor in factors:
            if not 0 < factor < math.inf:
                raise UserError(f"rope_factors must be positive and finite, got {factor}")
