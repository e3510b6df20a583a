"""Pallas by way of Triton: the one file that knows which compiler stands behind a kernel.

Pallas' Triton backend is deprecated from JAX 0.11 on; what takes its place is put in here.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.stages import Lowered
from jaxlib.mlir import ir
from jaxtyping import Array

from deltakv_jax.errors import UserError

load = plgpu.load
"""Values of a reference: `load(ref.at[…], mask=…, other=…)`."""

program_id = pl.program_id
"""The number of a program along an axis of the grid."""

_CUSTOM_CALL = "__gpu$xla.gpu.triton"


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU to compile for, at hand or not.

    Attributes:
      name: the architecture, as its maker calls it.
      platform: as JAX calls it.
      device_kind: as JAX names the device.
      warp: threads that run in step.
    """

    name: str
    platform: str
    device_kind: str
    warp: int


TARGETS = {
    target.name: target
    for target in (
        Target("gfx906", "rocm", "gfx906", 64),
        Target("gfx90a", "rocm", "gfx90a", 64),
        Target("gfx942", "rocm", "gfx942", 64),
        Target("sm_90", "cuda", "NVIDIA H100 80GB HBM3", 32),
    )
}


@dataclasses.dataclass(frozen=True)
class TritonKernel:
    """A kernel as Pallas hands it to the GPU's compiler.

    Attributes:
      ir: the Triton IR, as text.
      warps: warps of a program.
      stages: loads of a loop that are under way at once.
      grid: programs along each axis.
    """

    ir: str
    warps: int
    stages: int
    grid: tuple[int, int, int]


def call(
    kernel: Callable[..., None],
    out_shape: Any,
    *,
    name: str,
    grid: tuple[int, ...],
    warps: int,
    stages: int,
    interpret: bool,
) -> Callable[..., Any]:
    """A `pallas_call` whose references are whole arrays; it never takes Mosaic, which no AMD has.

    Args:
      kernel: takes a pytree of references to the arguments, then one to the outputs.
      out_shape: a pytree of `jax.ShapeDtypeStruct`.
      name: of the kernel, in profiles and error messages.
      grid: programs along up to three axes.
      warps: warps of a program.
      stages: loads of a loop that are under way at once.
      interpret: run it as plain JAX, on any machine.
    """
    whole = pl.BlockSpec(memory_space=pl.ANY)

    def run(inputs: Any) -> Any:
        _check_offsets(jax.tree.leaves(inputs))
        [outputs] = pl.pallas_call(
            kernel,
            [out_shape],
            grid=grid,
            in_specs=[jax.tree.map(lambda _: whole, inputs)],
            out_specs=[jax.tree.map(lambda _: whole, out_shape)],
            compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=stages),
            interpret=interpret,
            name=name,
        )(inputs)
        return outputs

    return run


def addressable(size: int, itemsize: int) -> bool:
    """Whether a kernel can read an array of `size` numbers.

    Pallas counts in 32 bits up to 2^32 bytes, which are too few for more than 2^31 numbers.
    """
    return size <= 2**31 or size * itemsize > 2**32


def _check_offsets(arrays: Sequence[Any]) -> None:
    for array in arrays:
        if not addressable(array.size, array.dtype.itemsize):
            raise UserError(
                f"the kernels read arrays of at most {2**31} numbers or more than {2**32} bytes, "
                f"one has {array.size} bytes; xla reads it"
            )


def assembly(
    text: str, inputs: Sequence[Array], dtype: Any, *, register: str = "r", pack: int = 1
) -> Array:
    """Assembly for arrays of one shape, value by value.

    Args:
      text: instructions. Registers are numbered from `$0` on: first those of the result, then those
        of each input.
      inputs: integers.
      dtype: of the result.
      register: what LLVM calls the kind of register: "r" on NVIDIA's GPUs, "v" on AMD's.
      pack: values that the text serves at once. They share registers of 32 bits: four bytes lie in
        one, four integers of 32 bits in four.
    """
    count = lambda kind: pack * jnp.dtype(kind).itemsize // 4
    out = [f"=&{register}"] * count(dtype)
    taken = [register] * sum(count(x.dtype) for x in inputs)
    [result] = plgpu.elementwise_inline_asm(
        text,
        args=inputs,
        constraints=",".join(out + taken),
        pack=pack,
        result_shape_dtypes=[jax.ShapeDtypeStruct(inputs[0].shape, dtype)],
    )
    return result


def lower(function: Callable[..., Any], arguments: Sequence[Any], target: Target) -> Lowered:
    """`function` lowered for a GPU that need not be at hand, from the shapes of its arguments."""
    with _device(target):
        traced = jax.jit(function).trace(*arguments)
        return traced.lower(lowering_platforms=(target.platform,))


def device_kind() -> str:
    """The kind of the device that is compiled for: one asked for by `lower`, or the first."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None:
        return abstract.device_kind
    device = jax.devices()[0]
    # The kind of an AMD device is the name on its box; what matters is its architecture.
    architecture = str(getattr(device, "compute_capability", ""))
    return architecture if architecture.startswith("gfx") else device.device_kind


def _device(target: Target) -> contextlib.AbstractContextManager:
    """What Pallas asks, from JAX 0.11 on, for the device that it lowers for."""
    device = jax.sharding.AbstractDevice(
        device_kind=target.device_kind, num_cores=None, platform="gpu"
    )
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


def triton_kernels(lowered: Lowered) -> list[TritonKernel]:
    """The Triton kernels of a lowered program, in order."""
    module: Any = lowered.compiler_ir()
    return [_kernel(operation) for operation in _calls(module.operation)]


def _calls(operation: Any) -> Iterator[Any]:
    for region in operation.regions:
        for block in region:
            for inner in block:
                attributes = inner.operation.attributes
                if "call_target_name" in attributes and _CUSTOM_CALL in str(
                    attributes["call_target_name"]
                ):
                    yield inner
                yield from _calls(inner.operation)


def _kernel(operation: Any) -> TritonKernel:
    config = operation.attributes["mhlo.backend_config"]
    number = lambda key: ir.IntegerAttr(config[key]).value
    return TritonKernel(
        ir=_text(ir.StringAttr(config["ir"]).value_bytes),
        warps=number("num_warps"),
        stages=number("num_stages"),
        grid=(number("grid_x"), number("grid_y"), number("grid_z")),
    )


def _text(bytecode: bytes) -> str:
    from jaxlib.triton import dialect  # needs nothing of Triton's, but is not there everywhere

    with ir.Context() as context:
        dialect.register_dialect(context)
        module = ir.Module.parse(bytecode)
        return str(module.operation.get_asm(enable_debug_info=False))
