"""One way to a model, whatever its weights come in: open it, then read a `Llama` from it."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from deltakv_jax.checkpoint import is_saved
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.model import Llama
from deltakv_jax.weights.assemble import assemble
from deltakv_jax.weights.checkpoint import Checkpoint
from deltakv_jax.weights.huggingface import HuggingFaceSource
from deltakv_jax.weights.source import Source
from deltakv_jax.weights.tokenizers import Tokenizer

HUB = "hf:"
GGUF = ".gguf"
EXPECTED = f"a Hugging Face folder, a converted model, a {GGUF} file or {HUB}OWNER/NAME"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
      name: of its folder or file, or on the hub.
      config: its sizes.
      model: its weights.
      tokenizer: its tokenizer.
      mesh: the devices that share the weights, None where they are on one.
    """

    name: str
    config: LlamaConfig
    model: Llama
    tokenizer: Tokenizer
    mesh: Mesh | None = None


def load_model(
    model: Path | str, weights: str | None = None, mesh: Mesh | None = None
) -> LoadedModel:
    """Loads a model.

    Args:
      model: as in `open_model`.
      weights: what the matrices are stored as, a key of `storage.WEIGHTS`; None for what suits the
        file and the device, as `storage.choose` says. A converted model stays as it is.
      mesh: the devices that share the weights, each of which is given its part alone; None for
        the default device.

    Raises:
      UserError: where a file is missing, damaged or describes what is not supported, or the model
        cannot be split over the mesh.
    """
    opened = open_model(model)
    tokenizer = opened.tokenizer()
    read = read_weights(opened, weights, mesh)
    return LoadedModel(opened.name, opened.config, read, tokenizer, mesh)


def open_model(model: Path | str) -> Source | Checkpoint:
    """Opens a model, its weights unread.

    Args:
      model: a folder that `save_checkpoint` wrote, or as in `open_source`.

    Raises:
      UserError: where there is none, or it is damaged or not supported.
    """
    path = Path(model)
    if is_saved(path) and not (path / "config.json").exists():
        return Checkpoint(path)
    return open_source(model)


def read_weights(
    opened: Source | Checkpoint, weights: str | None = None, mesh: Mesh | None = None
) -> Llama:
    """Reads the weights of an open model; arguments and errors as in `load_model`."""
    if isinstance(opened, Checkpoint):
        return opened.model(weights, mesh)
    return assemble(opened, weights, mesh)


def open_source(model: Path | str) -> Source:
    """Opens a checkpoint, its weights unread.

    Args:
      model: a folder in Hugging Face's layout, a GGUF file, or "hf:OWNER/NAME[@REVISION]" for a
        model of the hub, which is fetched where this machine does not have it.

    Raises:
      UserError: where there is none, or it is damaged or not supported.
    """
    # readers are imported when they are needed: each brings a library of its own
    if isinstance(model, str) and model.startswith(HUB):
        from deltakv_jax.weights import hub

        return HuggingFaceSource(hub.fetch(model), hub.parse(model)[0])
    path = Path(model)
    if path.is_dir():
        return HuggingFaceSource(path)
    if path.suffix == GGUF and path.is_file():
        from deltakv_jax.weights.gguf.source import open_gguf

        return open_gguf(path)
    raise UserError(f"no model {str(model)!r}; expected {EXPECTED}")
