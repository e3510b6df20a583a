"""Models by name, as their published config.json describes them; nothing is downloaded."""

from deltakv_jax.config import LlamaConfig, RopeScaling


def _llama3(
    *, width: int, layers: int, heads: int, head_dim: int, ffn: int, tied: bool, factor: float
) -> LlamaConfig:
    """What the models of Llama 3.1 and 3.2 have in common."""
    return LlamaConfig(
        vocab_size=128256,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=head_dim,
        ffn=ffn,
        context=131072,
        rope_theta=500000.0,
        norm_eps=1e-5,
        tied=tied,
        rope_scaling=RopeScaling(
            factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192
        ),
    )


PRESETS = {
    "llama3.1-8b": _llama3(
        width=4096, layers=32, heads=32, head_dim=128, ffn=14336, tied=False, factor=8.0
    ),
    "llama3.1-70b": _llama3(
        width=8192, layers=80, heads=64, head_dim=128, ffn=28672, tied=False, factor=8.0
    ),
    "llama3.1-405b": _llama3(
        width=16384, layers=126, heads=128, head_dim=128, ffn=53248, tied=False, factor=8.0
    ),
    "llama3.2-1b": _llama3(
        width=2048, layers=16, heads=32, head_dim=64, ffn=8192, tied=True, factor=32.0
    ),
    "llama3.2-3b": _llama3(
        width=3072, layers=28, heads=24, head_dim=128, ffn=8192, tied=True, factor=32.0
    ),
}
