"""A small random Llama whose weights are made when they are read, on one device or over a mesh."""

import functools
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize
from jax.sharding import Mesh

from deltakv_jax.config import LlamaConfig
from deltakv_jax.model import Llama
from deltakv_jax.parallel.mesh import make_mesh
from deltakv_jax.weights import Tokenizer
from deltakv_jax.weights.assemble import assemble
from deltakv_jax.weights.roles import layer_shapes, model_shapes
from deltakv_jax.weights.source import Tensor
from scripts.fuzzing.gguf_files import random_tensor

CONFIG = LlamaConfig(
    vocab_size=96,
    width=128,
    layers=2,
    heads=16,
    kv_heads=8,
    head_dim=32,
    ffn=256,
    context=256,
    rope_theta=1e4,
    norm_eps=1e-5,
    tied=False,
)
_DTYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16}
PROMPTS = (list(range(1, 20)), list(range(30, 45)))


class RandomSource:
    """A checkpoint whose values depend on role and layer alone.

    Attributes:
      name: of the model.
      config: what it is.
    """

    def __init__(self, config: LlamaConfig = CONFIG, kinds: Mapping[str, str] = {}):
        """Takes the types of those roles that are not float32."""
        self.name, self.config = "random", config
        self._kinds = dict(kinds)

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        shape = (model_shapes(self.config) | layer_shapes(self.config))[role]
        kind = self._kinds.get(role, "f32") if len(shape) == 2 else "f32"
        read = functools.partial(_draw, role, layer, shape, kind)
        values = lambda: dequantize(read(), Type[kind.upper()])
        return Tensor(role, kind, shape, read, values)

    def check_all_used(self) -> None:
        pass

    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    def save_tokenizer(self, folder: Path) -> None:
        """It has none."""


def _draw(role: str, layer: int | None, shape: tuple[int, ...], kind: str) -> np.ndarray:
    rng = np.random.default_rng([*role.encode(), layer or 0])
    if kind not in _DTYPES:
        return random_tensor(rng, shape, Type[kind.upper()])[0]
    values = rng.standard_normal(shape, np.float32) * shape[-1] ** -0.5
    return (1 + 0.1 * values if "norm" in role else values).astype(_DTYPES[kind])


@functools.cache
def model_on(mesh: Mesh | None, weights: str = "q4_0") -> Llama:
    return assemble(RandomSource(), weights, mesh)


def tensor4() -> Mesh:
    return make_mesh({"tensor": 4})
