"""Writes `layered.npz`: rows in the stored frame, and their bytes by the README's words alone.

    python tests/golden/make_layered.py

Made with numpy 2.4.6: no line of the package is used. For each head_dim D and width of codes B
there are `x_D` [t, d]; `codes_B_D`, `scales_B_D` and, of 3 bits, `high_3_D`, the packed rows;
`values_B_D`, what they stand for; `near_codes_B_D` and `near_scales_B_D`, the refinements; and
`refined_B_D`, values and refinements together.
"""

from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("layered.npz")
HEAD_DIMS = (64, 96, 128)
BENDS = {2: 0, 3: 31, 4: 7}
TRIED = {2: (-2, -4, -6, -8), 3: (-1, -2, -3, -4), 4: (0, -1, -2)}
LARGEST_BYTE = 247
F32 = np.float32


def main() -> None:
    """Writes the file."""
    arrays = {}
    for head_dim in HEAD_DIMS:
        x = arrays[f"x_{head_dim}"] = rows(head_dim)
        for bits in (2, 3, 4):
            made = one(x, bits, block=head_dim if head_dim <= 64 else head_dim // 2)
            arrays |= {f"{name}_{bits}_{head_dim}": array for name, array in made.items()}
    np.savez_compressed(PATH, **arrays)


def rows(head_dim: int) -> np.ndarray:
    """Normal values of many sizes, and edges: zeros, one value, ties, what is too large."""
    rng = np.random.default_rng(head_dim)
    normal = rng.standard_normal((16, head_dim)) * np.exp(2 * rng.standard_normal((16, 1)))
    one_value = np.zeros(head_dim)
    one_value[head_dim // 3] = -5.0
    ties = np.resize(np.arange(-8, 9) / 4, head_dim)
    edges = [np.zeros(head_dim), one_value, ties, ties * 1e-7, ties * 1e30, np.full(head_dim, 0.1)]
    return np.concatenate([normal, edges]).astype(F32)


def one(x: np.ndarray, bits: int, block: int) -> dict[str, np.ndarray]:
    """The packed rows, what they stand for, and their refinements."""
    codes, scales = quantized(x, bits, BENDS[bits], TRIED[bits], block)
    values = meant(codes, scales, bits, BENDS[bits], block)
    near_codes, near_scales = quantized(x - values, 4, 0, (0,), block)
    written = near_scales.repeat(block, axis=-1) > 0  # byte 0: the refinement is 0
    near = np.where(written, meant(near_codes, near_scales, 4, 0, block), F32(0))
    packed = {"codes": words(codes, 4, bits)}
    if bits == 3:
        packed = {"codes": words(codes & 3, 8, 2), "high": words(codes >> 2, 8, 1)}
    return {
        **packed,
        "scales": scales.astype(np.uint8),
        "values": values,
        "near_codes": words(near_codes, 4, 4),
        "near_scales": near_scales.astype(np.uint8),
        "refined": values + near,
    }


def quantized(
    x: np.ndarray, bits: int, bend: int, tried: tuple[int, ...], block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [t, d], and bytes of scales [t, d / block]: of those tried the first of least error."""
    sizes = abs(x.reshape(len(x), -1, block))
    levels = level(np.arange(1, 2**bits, 2), bend).astype(F32)
    largest = nearest_byte(sizes.max(axis=-1) * (F32(1) / levels[-1]).astype(F32))
    byte, steps, error = attempt(sizes, levels, largest + tried[0])
    for offset in tried[1:]:
        other = attempt(sizes, levels, largest + offset)
        better = other[2] < error
        byte = np.where(better, other[0], byte)
        steps = np.where(better[..., None], other[1], steps)
        error = np.minimum(error, other[2])
    half = 2 ** (bits - 1)
    codes = np.where(x.reshape(sizes.shape) < 0, half - 1 - steps, half + steps)
    return codes.reshape(x.shape), byte


def attempt(
    sizes: np.ndarray, levels: np.ndarray, byte: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The byte within bounds, the place of each magnitude's level, and the block's error."""
    byte = np.clip(byte, 0, LARGEST_BYTE)
    scale = scale_of(byte)[..., None]
    limits = ((levels[1:].astype(float) + levels[:-1]) / 2).astype(F32)
    steps = np.sum([sizes > scale * limit for limit in limits], axis=0)
    with np.errstate(over="ignore"):
        error = total(np.minimum((levels[steps] * scale - sizes) ** 2, np.finfo(F32).max))
    return byte, steps, error


def level(n: np.ndarray, bend: int) -> np.ndarray:
    """n (1 + bend n²), bend in 4096ths."""
    return n * (1 + bend / 4096 * n.astype(float) ** 2)


def scale_of(byte: np.ndarray) -> np.ndarray:
    """2^(exponent - 15) (1 + mantissa / 8): 5 bits, then 3."""
    return (2.0 ** (byte // 8 - 15) * (1 + byte % 8 / 8)).astype(F32)


def nearest_byte(scale: np.ndarray) -> np.ndarray:
    """Of the nearest scale, the larger one at a tie; beyond both ends it goes on."""
    bits = scale.view(np.int32).astype(np.int64)
    return (bits - (112 << 23) + (1 << 19)) >> 20


def total(x: np.ndarray) -> np.ndarray:
    """The float32 sum along the last axis: halves are added to each other down to an odd rest."""
    with np.errstate(over="ignore"):
        while x.shape[-1] % 2 == 0:
            x = x[..., : x.shape[-1] // 2] + x[..., x.shape[-1] // 2 :]
        rest = x[..., 0]
        for place in range(1, x.shape[-1]):
            rest = rest + x[..., place]
    return rest


def meant(codes: np.ndarray, scales: np.ndarray, bits: int, bend: int, block: int) -> np.ndarray:
    """What codes and scales stand for."""
    n = 2 * codes + 1 - 2**bits
    return (level(n, bend) * scale_of(scales).repeat(block, axis=-1)).astype(F32)


def words(codes: np.ndarray, parts: int, bits: int) -> np.ndarray:
    """One code of each part of a row to a word, the first part in the lowest bits."""
    split = np.split(codes.astype(np.uint16), parts, axis=-1)
    made = np.sum([part << bits * place for place, part in enumerate(split)], axis=0)
    return made.astype(np.uint16 if parts * bits == 16 else np.uint8)


if __name__ == "__main__":
    main()
