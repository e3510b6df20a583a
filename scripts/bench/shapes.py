"""The shapes that benchmarks measure, each by its name."""

import dataclasses

from deltakv_jax.config import LlamaConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """A decode step of one attention layer: one query token over `tokens` stored ones."""

    batch: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int


def llama(width: int, layers: int, heads: int, kv_heads: int, ffn: int) -> LlamaConfig:
    """A Llama with heads of 64 values and a tied head over 32,000 tokens."""
    return LlamaConfig(
        vocab_size=32000,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        ffn=ffn,
        context=2048,
        rope_theta=10000.0,
        norm_eps=1e-5,
        tied=True,
    )


MODELS = {
    "llama_100m": llama(width=768, layers=12, heads=12, kv_heads=4, ffn=2048),
    # TinyLlama's layers, few of them
    "llama_1b_3_layers": llama(width=2048, layers=3, heads=32, kv_heads=4, ffn=5632),
}

LLAMA_1B = llama(width=2048, layers=22, heads=32, kv_heads=4, ffn=5632)
"""TinyLlama: 1.03 billion weights with a tied head."""

NARROW = dataclasses.replace(llama(128, 8, 2, 1, ffn=256), vocab_size=256)
DEPTHS = {
    "narrow_8_layers": NARROW,
    "narrow_80_layers": dataclasses.replace(NARROW, layers=80),
}

HEADS = {"llama3_8b": (32, 8), "llama3_70b_of_4": (16, 2)}
"""Query heads and kv heads of one device; four devices share the 70B."""
CONTEXTS = {"2k": 2048, "8k": 8192, "32k": 32768, "128k": 131072}
BATCHES = {"": 1, "_batch_8": 8, "_batch_32": 32}

ATTENTION = {
    f"{model}_decode_{context}{suffix}": AttentionShape(
        batch=batch, tokens=tokens, heads=heads, kv_heads=kv_heads, head_dim=128
    )
    for model, (heads, kv_heads) in HEADS.items()
    for context, tokens in CONTEXTS.items()
    for suffix, batch in BATCHES.items()
}


MATRICES = {
    "llama3_70b_query": (8192, 8192),
    "llama3_70b_key": (1024, 8192),
    "llama3_70b_gate": (28672, 8192),
    "llama3_70b_down": (8192, 28672),
    "llama3_70b_head": (128256, 8192),
    "llama3_8b_query": (4096, 4096),
    "llama3_8b_key": (1024, 4096),
    "llama3_8b_gate": (14336, 4096),
    "llama3_8b_down": (4096, 14336),
    "llama3_70b_of_4_gate": (7168, 8192),
    "llama3_70b_of_4_down": (8192, 7168),
}
"""Rows and values of a row of the matrices that a decode step multiplies."""
