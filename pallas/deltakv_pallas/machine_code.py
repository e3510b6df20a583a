"""Machine code of a kernel for a GPU that is not at hand, and what it takes of that GPU.

The one file that knows the `triton` package (the extra `gpu-aot`): JAX hands out Triton IR, and
its own compiler runs only where the GPU is.
"""

import collections
import dataclasses
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltakv_jax.errors import UserError
from deltakv_pallas.lowering import Target, TritonKernel

TRITON = "3.8.0"
"""The version that still compiles for gfx906; older ones refuse it."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """What a kernel takes of a GPU; None is what NVIDIA's compiler does not say.

    Attributes:
      vgprs: vector registers of a thread.
      sgprs: scalar registers of a wave.
      spills: registers that did not fit and went to memory.
      lds: bytes of local memory (NVIDIA: shared memory) of a program.
      occupancy: waves that a SIMD holds at once, as far as registers go.
      code: bytes of machine code.
      loop: instructions of the longest loop, by kind: vector, lds, memory, scalar.
    """

    vgprs: int
    sgprs: int | None
    spills: int
    lds: int
    occupancy: int | None
    code: int
    loop: Mapping[str, int] | None


def compile_kernel(kernel: TritonKernel, target: Target) -> Resources:
    """Compiles a kernel for `target`.

    Raises:
      UserError: without the `triton` package.
    """
    compiled = _compile(kernel, target)
    return (_amd if target.platform == "rocm" else _nvidia)(compiled)


def _compile(kernel: TritonKernel, target: Target) -> Any:
    try:
        import triton
        from triton.backends.compiler import GPUTarget
    except ImportError:
        raise UserError(
            f"machine code needs triton=={TRITON}; install it with pip install '.[gpu-aot]'"
        ) from None
    backend = "hip" if target.platform == "rocm" else "cuda"
    arch = target.name if backend == "hip" else int(target.name.removeprefix("sm_"))
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ttir"
        source.write_text(kernel.ir)
        return triton.compile(
            str(source), target=GPUTarget(backend, arch, target.warp), options=options
        )


def _amd(compiled: Any) -> Resources:
    text = compiled.asm["amdgcn"]
    number = lambda what: int(re.findall(rf"{what}: *(\d+)", text)[0])
    return Resources(
        vgprs=number(r"\.vgpr_count"),
        sgprs=number(r"\.sgpr_count"),
        spills=number(r"\.vgpr_spill_count") + number(r"\.sgpr_spill_count"),
        lds=compiled.metadata.shared,
        occupancy=number("Occupancy"),
        code=int(re.findall(r"codeLenInByte = (\d+)", text)[0]),
        loop=_loop(text.splitlines()),
    )


def _nvidia(compiled: Any) -> Resources:
    """Asks the assembler once more, as only it says how many registers there are."""
    from triton import knobs

    text = compiled.asm["ptx"]
    arch = re.findall(r"\.target (\w+)", text)[0]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(text)
        command = [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={arch}", "-o", os.devnull, source]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    number = lambda what: sum(int(found) for found in re.findall(what, said))
    return Resources(
        vgprs=number(r"Used (\d+) registers"),
        sgprs=None,
        spills=number(r"(\d+) bytes spill stores") // 4,
        lds=compiled.metadata.shared,
        occupancy=None,
        code=len(compiled.asm["cubin"]),
        loop=None,
    )


_KINDS = {"v_": "vector", "ds_": "lds", "global_": "memory", "buffer_": "memory", "s_": "scalar"}


def _loop(lines: Sequence[str]) -> dict[str, int]:
    """Instructions of the longest loop: from a label to the last branch back to it."""
    labels = {match[1]: at for at, line in enumerate(lines) if (match := _LABEL.match(line))}
    branches = ((at, _BRANCH.search(line)) for at, line in enumerate(lines))
    loops = [(labels[m[1]], at) for at, m in branches if m and labels.get(m[1], at) < at]
    start, end = max(loops, key=lambda loop: loop[1] - loop[0], default=(0, 0))
    words = (line.split()[0] for line in lines[start:end] if line.split())
    kinds = (kind for word in words for begin, kind in _KINDS.items() if word.startswith(begin))
    return dict(collections.Counter(kinds))


_LABEL = re.compile(r"(\.LBB\w+):")
_BRANCH = re.compile(r"s_c?branch\w*\s+(\.LBB\w+)")
