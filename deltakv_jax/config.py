"""What a Llama is, apart from its weights."""

import dataclasses

from deltakv_jax.errors import UserError

_SIZES = ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn", "context")


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
        if self.original_context < 1 or not self.factor >= 1:
            raise UserError(f"factor and original_context must be at least 1 in {self}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
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

    def __post_init__(self):
        for field in _SIZES:
            if getattr(self, field) < 1:
                raise UserError(f"{field} must be at least 1, got {getattr(self, field)}")
        for field in ("rope_theta", "norm_eps"):
            if not getattr(self, field) > 0:
                raise UserError(f"{field} must be positive, got {getattr(self, field)}")
        if self.heads % self.kv_heads:
            raise UserError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for RoPE, got {self.head_dim}")
