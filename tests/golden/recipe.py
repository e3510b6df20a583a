"""Weights that the golden files' makers and their readers draw alike, so that none need be stored.

Each tensor is drawn from a generator seeded by its name, whatever the others are.
"""

import zlib
from collections.abc import Mapping

import numpy as np


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """float16 tensors of these names and shapes."""
    return {name: draw(name, tuple(shape)) for name, shape in shapes.items()}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Norms lie around 1 but are not 1; biases are as large as what they are added to."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("norm.weight"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float16)
    deviation = 0.5 if name.endswith("bias") else 0.2
    return rng.normal(0.0, deviation, shape).astype(np.float16)
