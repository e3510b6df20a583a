"""Meshes of devices: `data` rows of `tensor` devices each."""

from collections.abc import Mapping

import jax
from jax.sharding import AxisType, Mesh

from deltakv_jax.errors import UserError
from deltakv_jax.parallel.sharding import DATA, TENSOR

AXES = (DATA, TENSOR)


def make_mesh(shape: Mapping[str, int]) -> Mesh:
    """A mesh of the first devices of this machine, or of all those of several processes.

    Args:
      shape: the size of each axis, 1 where it is left out.

    Raises:
      UserError: where there are too few devices, or some of several processes would have none.
    """
    sizes = tuple(shape.get(axis, 1) for axis in AXES)
    wanted, devices = sizes[0] * sizes[1], jax.devices()
    if wanted > len(devices):
        raise UserError(f"a mesh of {named(shape)} takes {wanted} devices, {_there_are(devices)}")
    if jax.process_count() > 1 and wanted != len(devices):
        raise UserError(
            f"a mesh of {named(shape)} takes {wanted} devices, but {jax.process_count()} processes "
            f"have {len(devices)}: use all"
        )
    kinds = (AxisType.Auto,) * len(AXES)  # 0.12 makes the axes explicit if nothing is said
    return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=devices[:wanted])


def named(shape: Mapping[str, int]) -> str:
    """A mesh shape as `--mesh` takes it."""
    return ",".join(f"{axis}={size}" for axis, size in shape.items() if size > 1) or f"{TENSOR}=1"


def _there_are(devices: list[jax.Device]) -> str:
    found = f"there are {len(devices)}" if len(devices) > 1 else "there is 1"
    if devices[0].platform != "cpu":
        return found
    return (
        f"{found}; XLA_FLAGS=--xla_force_host_platform_device_count=N makes N virtual ones of a CPU"
    )
