"""The network. It is given its attention and knows no cache format, kernel or mesh."""

from deltakv_jax.model.llama import Llama as Llama
