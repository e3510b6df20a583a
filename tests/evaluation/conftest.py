"""A small random Llama, which every machine has, and the real ones where they are."""

import functools
from pathlib import Path

import numpy as np
import pytest

from deltakv_jax.evaluation.protocol import Chunks
from deltakv_jax.model import Llama
from deltakv_jax.weights import LoadedModel, load_model
from tests.models import SMALL as CONFIG
from tests.models import random_model

# Shared by the tests of this folder, and with it what they compile.
CTX = 40
PACKED = "delta:interval=8/q4_0"


@functools.cache
def _random_llama() -> Llama:
    return random_model(CONFIG)


@functools.cache
def _load(folder: Path) -> LoadedModel:
    return load_model(folder, "f32")


@pytest.fixture
def random_llama() -> Llama:
    return _random_llama()


@pytest.fixture
def random_chunks():
    """Chunks of random tokens, all alike but for their number."""

    def draw(count: int, ctx: int) -> Chunks:
        tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (16, ctx), np.int32)
        return Chunks(tokens[:count], ctx // 2, 16)

    return draw


@pytest.fixture
def tiny1m(shared) -> LoadedModel:
    return _load(shared / "models" / "tiny1m")


@pytest.fixture
def stories260k(shared) -> LoadedModel:
    return _load(shared / "models" / "stories260K")
