"""A model's folder: config.json, safetensors, tokenizer.json."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import deltakv_jax
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.model import Llama
from deltakv_jax.weights.configuration import config_from_fields, fields_from_config
from deltakv_jax.weights.fields import Fields
from deltakv_jax.weights.huggingface import load_weights, save_weights
from deltakv_jax.weights.tokenizer import Tokenizer

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
      name: of its folder.
      config: its sizes.
      model: its weights.
      tokenizer: its tokenizer.
    """

    name: str
    config: LlamaConfig
    model: Llama
    tokenizer: Tokenizer


def demo_folder() -> Path:
    """The folder of the model that comes with the package."""
    return Path(deltakv_jax.__file__).parent / "demo"


def load_model(folder: Path | str, *, dtype: str | None = None) -> LoadedModel:
    """Loads a model from a folder in Hugging Face's layout.

    Args:
      folder: holds config.json, tokenizer.json and the weights in safetensors.
      dtype: "f32", "bf16" or "f16", the type of the matrices; None for float32 on a CPU and the
        checkpoint's own type on an accelerator.

    Raises:
      UserError: where a file is missing, damaged or describes what is not supported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; expected one with config.json and model.safetensors")
    config = config_from_fields(Fields.read(folder / "config.json"))
    tokenizer = Tokenizer.load(folder, limit=config.vocab_size)
    model = load_weights(folder, config, None if dtype is None else _dtype(dtype))
    return LoadedModel(folder.resolve().name, config, model, tokenizer)


def save_model(folder: Path, model: Llama, tokenizer: Path, *, bos: str, eos: str) -> None:
    """Writes a model with float16 weights; `load_model` reads it back.

    Args:
      folder: made if need be; files in it are replaced.
      model: the weights.
      tokenizer: a tokenizer.json, copied.
      bos: the token that begins every text.
      eos: the token that ends a text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, model, np.dtype(np.float16))
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    _write_json(
        folder / "config.json", {**fields_from_config(model.config), "torch_dtype": "float16"}
    )
    _write_json(folder / "tokenizer_config.json", {"bos_token": bos, "eos_token": eos})


def _dtype(name: str) -> np.dtype:
    if name not in DTYPES:
        raise UserError(f"unknown dtype {name!r}; known are {', '.join(DTYPES)}")
    return jnp.dtype(DTYPES[name])


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
