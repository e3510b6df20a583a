"""Makes families/*.npz: logits of a tiny random model of each family, by transformers.

    pip install torch==2.13.0 transformers==5.23.0
    python -m tests.golden.make_families

Each file holds config.json as transformers writes it, the names and shapes of the weights, which
`recipe.py` draws, the tokens [b t] and the float32 logits [b t v].
"""

# pyright: reportMissingImports=false
# (neither torch nor transformers is needed otherwise)

import json
from pathlib import Path

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.golden import recipe

FOLDER = Path(__file__).parent / "families"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

# Llama 3.1's RoPE over six times the original context; heads wider than the stream in Qwen3 and
# Mistral; Qwen2 leaves head_dim out; Qwen's window is given but not in use.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
THETA = {"rope_type": "default", "rope_theta": 100.0}
FAMILIES = {
    "llama3": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-5}),
    "mistral": (
        MistralForCausalLM,
        MistralConfig,
        {"rope_parameters": THETA, "sliding_window": None, "head_dim": 16, "rms_norm_eps": 0.01},
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"rope_parameters": THETA, "sliding_window": 4}),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"rope_parameters": THETA, "sliding_window": 4, "head_dim": 16, "rms_norm_eps": 0.02},
    ),
}


def make(name: str, *, tied: bool) -> None:
    """Writes one file."""
    model_class, config_class, options = FAMILIES[name]
    config = config_class(**SIZES, **options, tie_word_embeddings=tied)
    model = model_class(config).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if tied:
        del shapes["lm_head.weight"]  # as in a saved file
    drawn = {key: torch.from_numpy(value).float() for key, value in recipe.weights(shapes).items()}
    model.load_state_dict(drawn, strict=not tied)
    model.tie_weights()
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (1, 48)).astype(np.int32)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens).long()).logits.numpy()
    np.savez_compressed(
        FOLDER / f"{name}_{'tied' if tied else 'untied'}.npz",
        config=config.to_json_string(),
        shapes=json.dumps(shapes),
        tokens=tokens,
        logits=logits,
    )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for family in FAMILIES:
        for tied in (True, False):
            make(family, tied=tied)
