"""GGUF files: header and tensors, the config and the tokenizer from the metadata."""

from deltakv_jax.weights.gguf.source import open_gguf as open_gguf
