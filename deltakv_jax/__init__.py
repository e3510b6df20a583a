"""A Flax Llama whose KV cache is stored as keyframes and 4-bit differences."""

__version__ = "0.1.0"
