"""What every reader of checkpoints gives: a config, and tensors by the role that they play.

A role is an attribute of `Llama`: "embedding", "head", "final_norm", and per layer
"attention_norm", "ffn_norm", "query", "key", "value", "output", "gate", "up", "down"; with
`config.qkv_bias` also "query_bias", "key_bias", "value_bias", with `config.qk_norm` "query_norm"
and "key_norm".
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from deltakv_jax.config import LlamaConfig
from deltakv_jax.weights.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, its values unread.

    Attributes:
      name: as the file has it, for errors.
      kind: "f32", "f16", "bf16", "f64", or the name of a block type in lower case ("q4_0", …).
      shape: of the values as the model wants them, (out, in) for a matrix.
      read: gives the stored form: values in their own dtype [*shape] for the first four kinds,
        raw uint8 [out, bytes of a row] for block types. The rows stand in the model's order. It
        may be a view of mapped memory.
      values: gives float32 [*shape], dequantised.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    values: Callable[[], np.ndarray]


class Source(Protocol):
    """A checkpoint that is open.

    Attributes:
      name: of the model, for results.
      config: what the model is.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def config(self) -> LlamaConfig: ...  # noqa: D102

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        """The tensor of a role, of one layer for roles that each layer has.

        Raises:
          UserError: where the file lacks it or its shape is wrong; names the file's own name of
            the tensor and the expected shape.
        """
        ...

    def check_all_used(self) -> None:
        """Raises UserError where the file holds a tensor that has no place in the model."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that comes with the model."""
        ...

    def save_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files into `folder`, for `tokenizers.saving.load_saved`."""
        ...
