"""How the packed matrix-vector product is cut into programs, by device, format and shape.

`scripts/bench/tune.py` makes rows; the most special row that fits is taken.
"""

import dataclasses
from dataclasses import replace


@dataclasses.dataclass(frozen=True)
class Tuning:
    """One row of the table.

    Attributes:
      device: how the device's kind begins, as JAX or a target names it; "" fits every one.
      format: of the weights; "" fits every one.
      rows: of the matrix; 0 fits every number.
      values: in a row; 0 fits every number.
      width: blocks of a row that are read at once, at most; a power of two.
      bytes: that a thread reads at once of a leaf; a power of two.
      passes: tiles of rows that share what a program reads of x, at most; a power of two.
      quads: of positions of a block that a turn of the loop reads, at most; a power of two.
      warps: warps of a program.
      warp: threads of a warp.
      batch: rows of x that a program multiplies, at most.
      programs: that fill the device: with fewer, a program does fewer passes.
      timed: whether the row was timed on the device; if not, the kernel runs only where it is
        asked for by name.
      source: date, and how the row was found.
    """

    device: str = ""
    format: str = ""
    rows: int = 0
    values: int = 0
    width: int = 256
    bytes: int = 4
    passes: int = 1
    quads: int = 1
    warps: int = 4
    warp: int = 64
    batch: int = 4
    programs: int = 480
    timed: bool = False
    source: str = ""


_NVIDIA = Tuning("NVIDIA", passes=2, warp=32, programs=528, source="2026-11-26, compiled for sm_90")

_H200 = replace(
    _NVIDIA,
    device="NVIDIA H200",
    timed=True,
    source="2026-11-26, timed on an NVIDIA H200 as machine code that Triton 3.8.0 compiled",
)

_Q4_0 = replace(_H200, format="q4_0")

MATVEC = (
    Tuning(source="2026-11-26, compiled for gfx906, gfx90a and gfx942"),
    _NVIDIA,
    replace(_NVIDIA, format="q6_k", passes=1),
    _H200,
    replace(_H200, format="q8_0", passes=1, warps=2),
    replace(_H200, format="q4_k", warps=2),
    replace(_H200, format="q5_k", passes=1, warps=2),
    replace(_H200, format="q6_k", passes=1, warps=2),
    replace(_Q4_0, rows=28672, values=8192, passes=4, warps=2),
    replace(_Q4_0, rows=8192, values=28672, passes=1, warps=2),
    replace(_Q4_0, rows=8192, values=8192, passes=1, quads=4, warps=2),
    replace(_Q4_0, rows=1024, values=8192, passes=1, quads=4, warps=2),
    replace(_Q4_0, rows=128256, values=8192, bytes=8, quads=4),
    replace(_Q4_0, rows=14336, values=4096, warps=2),
    replace(_Q4_0, rows=4096, values=14336, passes=4, quads=4, warps=2),
    replace(_Q4_0, rows=4096, values=4096, passes=1),
    replace(_Q4_0, rows=1024, values=4096, passes=1),
)


def matvec_tuning(device: str, format_: str, rows: int, values: int) -> Tuning:
    """The most special row for a device's kind, a format, and a matrix of this shape."""
    fits = lambda row: (
        device.startswith(row.device)
        and row.format in ("", format_)
        and row.rows in (0, rows)
        and row.values in (0, values)
    )
    special = lambda row: (len(row.device), row.format != "", row.rows != 0, row.values != 0)
    return max(filter(fits, MATVEC), key=special)
