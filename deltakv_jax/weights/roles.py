"""The roles that a checkpoint's tensors play in a model, with the shape of each."""

from deltakv_jax.config import LlamaConfig

Shape = tuple[int, ...]


def model_shapes(config: LlamaConfig) -> dict[str, Shape]:
    """The roles that a model has once; matrices are (out, in)."""
    embedding = (config.vocab_size, config.width)
    head = {} if config.tied else {"head": embedding}
    return {"embedding": embedding, "final_norm": (config.width,), **head}


def layer_shapes(config: LlamaConfig) -> dict[str, Shape]:
    """The roles that each layer has; matrices are (out, in)."""
    width, ffn = config.width, config.ffn
    q_width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    biases = {"query_bias": (q_width,), "key_bias": (kv_width,), "value_bias": (kv_width,)}
    norms = {"query_norm": (config.head_dim,), "key_norm": (config.head_dim,)}
    return {
        "attention_norm": (width,),
        "query": (q_width, width),
        "key": (kv_width, width),
        "value": (kv_width, width),
        "output": (width, q_width),
        "ffn_norm": (width,),
        "gate": (ffn, width),
        "up": (ffn, width),
        "down": (width, ffn),
        **(biases if config.qkv_bias else {}),
        **(norms if config.qk_norm else {}),
    }
