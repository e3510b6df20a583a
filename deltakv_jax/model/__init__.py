"""The network. It is given its attention and knows no cache format, kernel or mesh."""

from deltakv_jax.model.llama import ONE_DEVICE as ONE_DEVICE
from deltakv_jax.model.llama import Collectives as Collectives
from deltakv_jax.model.llama import Llama as Llama
