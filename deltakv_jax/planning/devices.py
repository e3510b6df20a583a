"""Devices by name: what data sheets say of their memory, and what programs are lowered for.

Data sheets count a GB as 10^9 bytes of bandwidth. Memory is taken the same way, which is a little
less than the card has, and a little of that is the driver's.
"""

import dataclasses

from deltakv_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One device of a mesh.

    Attributes:
      name: as it is asked for.
      card: what is sold under which name.
      kind: how JAX names the device, for programs that are lowered without it.
      platform: the platform that a program is lowered for, or None for the one that compiles here.
      memory: bytes, or None where it depends on the machine.
      bandwidth: bytes per second of its memory, or None where it depends on the machine.
      source: where the figures are from.
    """

    name: str
    card: str
    kind: str
    platform: str | None
    memory: int | None
    bandwidth: float | None
    source: str


_GB = 10**9

DEVICES = {
    device.name: device
    for device in (
        Device(
            name="cpu",
            card="this machine's CPU",
            kind="cpu",
            platform=None,
            memory=None,
            bandwidth=None,
            source="not known: scripts/bench measure it",
        ),
        Device(
            name="gfx906",
            card="AMD Instinct MI50, 32 GB",
            kind="gfx906",
            platform="rocm",
            memory=32 * _GB,
            bandwidth=1024 * _GB,
            source="AMD's data sheet of the Radeon Instinct MI50: HBM2, 1024 GB/s",
        ),
        Device(
            name="gfx90a",
            card="AMD Instinct MI210, or one die of an MI250",
            kind="gfx90a",
            platform="rocm",
            memory=64 * _GB,
            bandwidth=1638 * _GB,
            source="AMD's data sheets: HBM2e, 1638 GB/s (MI210), 3277 GB/s for two dies (MI250)",
        ),
        Device(
            name="gfx942",
            card="AMD Instinct MI300X",
            kind="gfx942",
            platform="rocm",
            memory=192 * _GB,
            bandwidth=5300 * _GB,
            source="AMD's data sheet of the Instinct MI300X: HBM3, 5.3 TB/s",
        ),
        Device(
            name="h100",
            card="NVIDIA H100 SXM",
            kind="NVIDIA H100 80GB HBM3",
            platform="cuda",
            memory=80 * _GB,
            bandwidth=3350 * _GB,
            source="NVIDIA's data sheet of the H100: SXM, HBM3, 3.35 TB/s",
        ),
        Device(
            name="h200",
            card="NVIDIA H200",
            kind="NVIDIA H200",
            platform="cuda",
            memory=141 * _GB,
            bandwidth=4800 * _GB,
            source="NVIDIA's data sheet of the H200: HBM3e, 4.8 TB/s",
        ),
    )
}


def find_device(name: str) -> Device:
    """The device of this name; raises UserError where there is none, naming the known ones."""
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}; known are {', '.join(DEVICES)}")
    return DEVICES[name]
