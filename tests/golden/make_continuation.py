"""Makes continuation.json: what tiny1m goes on with, greedily, by a Llama of its own in NumPy.

    python tests/golden/make_continuation.py ../shared/models/tiny1m

Written from the paper's equations and Hugging Face's layout, in float64, one whole forward pass per
token and no cache; it shares no code with the package. `margin` is the least lead of a token over
the second likeliest, in logits: float32 must not blur it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import load_file

PROMPT = "Once upon a time"
BOS = 1
NEW_TOKENS = 100


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x, theta):
    """RoPE of [t heads d], the two halves of d paired."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * theta ** -(np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attention(q, k, v):
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", shares / shares.sum(-1, keepdims=True), v)


def block(x, w, config):
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    heads = lambda y: y.reshape(len(x), -1, config["head_dim"])
    h = rms_norm(x, w["input_layernorm"], eps)
    q, k, v = (heads(h @ w[f"self_attn.{name}_proj"].T) for name in "qkv")
    mixed = attention(rotate(q, theta), rotate(k, theta), v).reshape(len(x), -1)
    x = x + mixed @ w["self_attn.o_proj"].T
    h = rms_norm(x, w["post_attention_layernorm"], eps)
    gate = h @ w["mlp.gate_proj"].T
    gated = gate / (1 + np.exp(-gate)) * (h @ w["mlp.up_proj"].T)
    return x + gated @ w["mlp.down_proj"].T


def last_logits(ids, weights, config):
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        own = {
            name.removeprefix(prefix).removesuffix(".weight"): weight
            for name, weight in weights.items()
            if name.startswith(prefix)
        }
        x = block(x, own, config)
    x = rms_norm(x[-1], weights["model.norm.weight"], config["rms_norm_eps"])
    return weights.get("lm_head.weight", weights["model.embed_tokens.weight"]) @ x


def main(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["head_dim"] = config.get("head_dim") or (
        config["hidden_size"] // config["num_attention_heads"]
    )
    stored = load_file(folder / "model.safetensors")
    weights = {name: weight.astype(np.float64) for name, weight in stored.items()}
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = [BOS, *tokenizer.encode(PROMPT, add_special_tokens=False).ids]
    ids, margin = list(prompt), np.inf
    for _ in range(NEW_TOKENS):
        logits = last_logits(ids, weights, config)
        second, first = np.sort(logits)[-2:]
        margin = min(margin, first - second)
        ids.append(int(logits.argmax()))
    made = {
        "prompt": PROMPT,
        "prompt_ids": prompt,
        "ids": ids[len(prompt) :],
        "margin": round(float(margin), 6),
        "numpy": np.__version__,
        "tokenizers": tokenizers.__version__,
    }
    target = Path(__file__).with_name("continuation.json")
    target.write_text(json.dumps(made) + "\n")
    print(tokenizer.decode(ids), margin)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
