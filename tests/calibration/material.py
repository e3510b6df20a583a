"""A small random model, and calibrations that were made up for it."""

import functools

import numpy as np

from deltakv_jax.calibration import Calibration
from deltakv_jax.codec import parse_spec
from deltakv_jax.config import LlamaConfig
from deltakv_jax.generation.saving import fingerprint
from deltakv_jax.model import Llama
from tests.models import SMALL as CONFIG
from tests.models import random_model

SPECS = tuple(map(parse_spec, ("layered:bits=3:centre/layered", "q4_0")))


@functools.cache
def model() -> Llama:
    return random_model(CONFIG)


@functools.cache
def model_fingerprint() -> dict:
    return fingerprint(model())


def make_calibration(config: LlamaConfig = CONFIG, size: float = 1.0, **fields) -> Calibration:
    """Means of about this size, the same at every call."""
    rng = np.random.default_rng(0)
    shape = (config.layers, config.kv_heads, config.head_dim)
    draw = lambda: (size * rng.standard_normal(shape)).astype(np.float16)
    plain = {
        "k_mean": draw(),
        "v_mean": draw(),
        "k_cost": rng.random(config.layers, np.float32),
        "v_cost": rng.random(config.layers, np.float32),
        "model": "random",
        "fingerprint": model_fingerprint(),
        "text": "a.txt",
        "text_sha256": "ab" * 32,
        "ctx": 40,
        "chunks": 3,
    }
    return Calibration(**plain | fields)


def random_tokens(chunks: int, ctx: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, CONFIG.vocab_size, (chunks, ctx), np.int32)
