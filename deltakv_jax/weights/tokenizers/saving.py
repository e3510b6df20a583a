"""A tokenizer's files, put into a folder of their own and read from there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltakv_jax.weights.fields import Fields
from deltakv_jax.weights.tokenizers.base import Tokenizer
from deltakv_jax.weights.tokenizers.gguf import tokenizer_from_gguf

# What `Tokenizer.load` may look at.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "*.tiktoken",
    "tokenizer_config.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)

_METADATA = "gguf.json"
_PREFIX = "tokenizer."


def copy_files(source: Path, folder: Path) -> None:
    """Copies the tokenizer of the folder `source`."""
    for pattern in FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def write_metadata(metadata: Mapping[str, Any], folder: Path) -> None:
    """Writes what the metadata of a GGUF file say of its tokenizer."""
    ours = {name: metadata[name] for name in metadata if name.startswith(_PREFIX)}
    (folder / _METADATA).write_text(json.dumps(ours))


def load_saved(folder: Path, *, limit: int) -> Tokenizer:
    """The tokenizer that one of the two functions wrote into `folder`.

    Args:
      folder: the folder.
      limit: the number of tokens that the model can embed.

    Raises:
      UserError: where there is none, or it is damaged or not supported.
    """
    path = folder / _METADATA
    if not path.is_file():
        return Tokenizer.load(folder, limit=limit)
    return tokenizer_from_gguf(Fields.read(path).values, source=str(path), limit=limit)
