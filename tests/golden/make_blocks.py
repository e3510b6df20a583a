"""Writes `blocks.npz`: float32 rows, and their bytes as llama.cpp's own quantisers make them.

    python tests/golden/make_blocks.py

Made with gguf 0.19.0 and numpy 2.4.6. A row is 64 values, two blocks of 32. In the bytes of a
block its float16 scale stands first, then the codes.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants

PATH = Path(__file__).with_name("blocks.npz")


def main() -> None:
    """Writes the file."""
    x = np.concatenate([ordinary(), ties(), edges(), near_ties()]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        q8_0 = quants.quantize(x, GGMLQuantizationType.Q8_0).reshape(-1, 2, 34)
        q4_0 = quants.quantize(x, GGMLQuantizationType.Q4_0).reshape(-1, 2, 18)
    np.savez_compressed(PATH, x=x, q8_0=q8_0, q4_0=q4_0)


def ordinary() -> np.ndarray:
    """Normal values over many orders of magnitude."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((100, 64)) * np.exp(3 * rng.standard_normal((100, 1)))


def ties() -> np.ndarray:
    """Values half-way between two codes, with the largest value of either sign."""
    rows = []
    for power in (-9, 0, 5):
        for codes, largest in ((8, 8), (127, 127)):
            for sign in (1, -1):
                halves = np.arange(-codes, codes)[:63] + 0.5
                row = np.concatenate([[sign * largest], np.resize(halves, 63)])
                rows.append(np.concatenate([row[:32], [-sign * largest], row[33:]]) * 2.0**power)
    return np.array(rows)


def edges() -> np.ndarray:
    """Zeros, two largest values of opposite sign, scales below and above float16's range."""
    ramp = np.linspace(-1, 0.9, 64)
    opposite = np.zeros(64)
    opposite[[3, 17, 40, 41]] = [2.0, -2.0, -2.0, 2.0]
    one = np.zeros(64)
    one[[31, 32]] = [1e-3, -5.0]
    sizes = [1e-30, 1e-9, 3e-7, 1e-6, 1e-5, 1e-4, 4e-4, 6e4, 5.2e5, 5.3e5, 8.3e6, 1e30]
    return np.array([np.zeros(64), -np.zeros(64), opposite, one, *(ramp * s for s in sizes)])


def near_ties() -> np.ndarray:
    """Values whose code depends on whether the product with 1 / scale is rounded to float32."""
    rng = np.random.default_rng(1)
    return np.array([_near_ties_of(rng.standard_normal() * 4) for _ in range(40)])


def _near_ties_of(size: float) -> np.ndarray:
    largest, half = np.float32(size), np.float32(0.5)
    inverse = np.float32(1) / (largest / np.float32(-8))
    middles = np.repeat(np.arange(-8, 8) + 0.5, 9) / np.float64(inverse)
    x = middles.astype(np.float32)
    for _ in range(4):
        x[1::2] = np.nextafter(x[1::2], np.float32(0))
        x[::3] = np.nextafter(x[::3], np.float32(9))
    exact = np.float64(x) * np.float64(inverse)
    apart = np.trunc(np.float32(exact + 8.5)) != np.trunc(np.float32(exact) + 8 + half)
    chosen = np.unique(x[apart & (abs(x) < abs(largest))])
    row = np.resize(chosen if chosen.size else middles, 64)
    row[[0, 32]] = largest
    return row


if __name__ == "__main__":
    main()
