"""Folders in Hugging Face's layout that this package has or makes."""

import json
import shutil
from pathlib import Path

import numpy as np

import deltakv_jax
from deltakv_jax.model import Llama
from deltakv_jax.weights.configuration import fields_from_config
from deltakv_jax.weights.huggingface import save_weights


def demo_folder() -> Path:
    """The folder of the model that comes with the package."""
    return Path(deltakv_jax.__file__).parent / "demo"


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


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
