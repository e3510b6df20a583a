"""How the kernels are cut into programs: tiles and warps by device, format and shape.

`scripts/bench/tune.py` makes rows; the most special row that fits is taken.
"""

import dataclasses
from dataclasses import replace


@dataclasses.dataclass(frozen=True)
class Tuning:
    """One row of the table.

    Attributes:
      device: how the device's kind begins, as JAX or a target names it; "" fits every one.
      spec: of the cache, without rotation; "" fits every one.
      head_dim: values of a head; 0 fits every one.
      heads: query heads that share a kv head; 0 fits every number.
      tile: tokens that a program reads at once, a power of two.
      warps: warps of a program.
      stages: loads of the loop over tiles that are under way at once.
      matrix_units: whether the device has them.
      half_sums: whether they can sum in float16.
      rows: query rows of a program, at least; what a matrix unit takes.
      programs: programs that fill the device.
      timed: whether the row was timed on the device; if not, the kernel runs only where it is
        asked for by name.
      source: date, and how the row was found.
    """

    device: str = ""
    spec: str = ""
    head_dim: int = 0
    heads: int = 0
    tile: int = 32
    warps: int = 4
    stages: int = 1
    matrix_units: bool = True
    half_sums: bool = False
    rows: int = 16
    programs: int = 512
    timed: bool = False
    source: str = ""


_COMPILED = "2026-11-26, compiled for gfx906"
_TIMED = "2026-11-26, timed on an NVIDIA H200 at 32k tokens, batch 8"

_MI50 = Tuning("gfx906", matrix_units=False, rows=1, programs=480, source=_COMPILED)
_NVIDIA = Tuning(
    "NVIDIA",
    warps=1,
    stages=2,
    half_sums=True,
    rows=8,
    programs=1536,
    source="2026-11-26, compiled for sm_90",
)
_H200 = replace(_NVIDIA, device="NVIDIA H200", head_dim=128, heads=4, timed=True, source=_TIMED)

DECODE = (
    Tuning(source="2026-11-26, compiled for gfx90a and gfx942"),
    _NVIDIA,
    replace(_NVIDIA, spec="f32", warps=4, stages=1),
    replace(_NVIDIA, spec="bf16", warps=4, stages=1),
    replace(_NVIDIA, spec="delta:interval=128", warps=2),
    replace(_NVIDIA, spec="delta/q4_0", warps=2),
    replace(_H200, spec="f16"),
    replace(_H200, spec="q8_0", stages=1),
    replace(_H200, spec="q4_0"),
    replace(_H200, spec="delta", programs=1056),
    _MI50,
    replace(_MI50, spec="f32", head_dim=80, heads=4, tile=16),
    replace(_MI50, spec="f32", head_dim=80, heads=8, tile=16),
    replace(_MI50, spec="f32", head_dim=128, heads=4, tile=16, warps=1),
    replace(_MI50, spec="bf16", head_dim=64, heads=8, tile=16, warps=2),
    replace(_MI50, spec="bf16", head_dim=80, heads=4, tile=16),
    replace(_MI50, spec="bf16", head_dim=80, heads=8, tile=16),
    replace(_MI50, spec="f16", head_dim=80, heads=4, tile=16),
    replace(_MI50, spec="f16", head_dim=80, heads=8, warps=8),
    replace(_MI50, spec="q8_0", head_dim=96, heads=4, warps=8),
    replace(_MI50, spec="q8_0", head_dim=96, heads=8, tile=16, warps=8),
    replace(_MI50, spec="q8_0/q4_0", head_dim=128, heads=4, tile=16, warps=2),
    replace(_MI50, spec="q8_0/q4_0", head_dim=128, heads=8, tile=16),
    replace(_MI50, spec="delta", head_dim=96, heads=4, tile=16),
    replace(_MI50, spec="delta:interval=8", head_dim=96, heads=4, tile=16, warps=2),
    replace(_MI50, spec="delta:interval=8", head_dim=96, heads=8, tile=16),
    replace(_MI50, spec="delta:interval=128", head_dim=64, heads=4, tile=16, warps=1),
    replace(_MI50, spec="delta:interval=128", head_dim=64, heads=8, tile=16, warps=2),
    replace(_MI50, spec="delta:interval=128", head_dim=96, heads=4, tile=16),
    replace(_MI50, spec="delta:interval=128", head_dim=96, heads=8, tile=16),
    replace(_MI50, spec="delta:interval=128", head_dim=128, heads=4, tile=16, warps=2),
    replace(_MI50, spec="delta:interval=128", head_dim=128, heads=8, tile=16),
)


def decode_tuning(device: str, spec: str, head_dim: int, heads: int) -> Tuning:
    """The most special row for a device's kind, a cache's spec, and a shape."""
    fits = lambda row: (
        device.startswith(row.device)
        and row.spec in ("", spec)
        and row.head_dim in (0, head_dim)
        and row.heads in (0, heads)
    )
    special = lambda row: (len(row.device), row.spec != "", row.head_dim != 0, row.heads != 0)
    return max(filter(fits, DECODE), key=special)
