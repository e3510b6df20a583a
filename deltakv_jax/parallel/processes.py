"""Several processes as one program: each starts it with the same arguments and has some devices."""

import contextlib
import os

import jax

from deltakv_jax.errors import UserError

LAUNCHERS = "Slurm, Open MPI or Kubernetes"

_VIRTUAL = "xla_force_host_platform_device_count"


def join(coordinator: str | None, process: int | None, count: int | None) -> None:
    """Joins the other processes, before JAX is used for anything else.

    Args:
      coordinator: HOST:PORT at which process 0 waits for the others.
      process: number of this process, from 0.
      count: of processes. None for all three takes them from the environment of a launcher.

    Raises:
      UserError: where they say nothing that JAX understands, or the others do not come.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, num_processes=count, process_id=process)
    except (ValueError, RuntimeError) as error:
        where = coordinator or f"the environment of {LAUNCHERS}"
        raise UserError(f"no several processes from {where}: {error}") from None


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def virtual_devices(count: int) -> None:
    """Makes a CPU count as so many devices, unless somebody has said how many, or JAX has begun."""
    if _VIRTUAL not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # it has: `make_mesh` says if there are too few
            jax.config.update("jax_num_cpu_devices", count)
