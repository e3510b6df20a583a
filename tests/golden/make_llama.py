"""Makes the folders llama_*: tiny random Llamas, saved and run by Hugging Face's transformers.

    pip install torch==2.13.0 transformers==5.23.0
    python tests/golden/make_llama.py

Each folder holds config.json and float16 weights as `save_pretrained` writes them, and logits.npz:
the tokens [b t] and the float32 logits [b t v] of those weights.
"""

# pyright: reportMissingImports=false
# (neither torch nor transformers is needed otherwise)

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# Grouped heads, a tied head, and Llama 3.1's RoPE over six times the original context.
TIED = {
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
}

# One key head for all, its own head, and shards with an index.
UNTIED = {
    "num_key_value_heads": 1,
    "tie_word_embeddings": False,
    "rms_norm_eps": 0.01,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}


def make(name: str, options: dict, shard_size: str) -> None:
    """Writes one folder."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **options)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms start as ones, which would hide that they are not applied
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    for parameter in model.parameters():  # not `model.half()`, which would round RoPE's buffers
        parameter.data = parameter.half().float()
    tokens = torch.randint(SIZES["vocab_size"], (2, 48))
    with torch.no_grad():
        logits = model(tokens).logits
    folder = Path(__file__).parent / name
    model.half().save_pretrained(folder, max_shard_size=shard_size)
    (folder / "generation_config.json").unlink()
    for path in folder.iterdir():
        path.chmod(0o644)
    np.savez(folder / "logits.npz", tokens=tokens.numpy().astype(np.int32), logits=logits.numpy())


if __name__ == "__main__":
    make("llama_tied", TIED, "1GB")
    make("llama_untied", UNTIED, "20KB")
