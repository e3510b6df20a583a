"""`--mesh` and `--distributed`: commands whose model lies on several devices, or machines."""

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Iterator

from jax.sharding import Mesh

from deltakv_jax.cli import arguments
from deltakv_jax.errors import UserError
from deltakv_jax.parallel import processes
from deltakv_jax.parallel.mesh import AXES, make_mesh


def add_mesh_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `opened` reads."""
    add = parser.add_argument
    add("--mesh", type=mesh_shape, metavar="tensor=N[,data=N]", help=_MESH_HELP)
    add("--distributed", action="store_true", help=_DISTRIBUTED_HELP)
    add("--coordinator", metavar="HOST:PORT", help="of --distributed: where process 0 listens")
    add("--process-id", type=_number, metavar="I", help="of --distributed: this process, from 0")
    add("--process-count", type=arguments.positive, metavar="N", help="of --distributed: of all")


_MESH_HELP = (
    "split the model over N devices by heads, and the sequences over N such rows; a CPU counts as "
    "as many devices as it takes (one device)"
)
_DISTRIBUTED_HELP = (
    f"of --mesh: join processes that run the same command, under {processes.LAUNCHERS}, or as "
    "--coordinator, --process-id and --process-count say; process 0 prints"
)


def mesh_shape(text: str) -> dict[str, int]:
    """`text` as the size of each axis of a mesh, for `type=` of an argument."""
    words = [re.fullmatch(r"(\w+)=([1-9]\d{0,4})", word) for word in text.split(",")]
    shape = {word[1]: int(word[2]) for word in words if word is not None}
    if len(shape) < len(words) or not shape.keys() <= set(AXES):
        raise argparse.ArgumentTypeError(f"expected tensor=N, data=N or both, got {text!r}")
    return shape


def _number(text: str) -> int:
    return arguments.whole_number(text, at_least=0)


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[Mesh | None]:
    """The mesh that the arguments ask for; within, no process but the first one prints.

    Raises:
      UserError: where the arguments contradict each other, or there are too few devices.
    """
    _check(options)
    if options.mesh is None:
        yield None
        return
    if not options.distributed or options.process_count is not None:
        wanted = math.prod(options.mesh.values())
        processes.virtual_devices(-(-wanted // (options.process_count or 1)))
    with _alone_on_stdout() if options.distributed else contextlib.nullcontext():
        if options.distributed:
            processes.join(options.coordinator, options.process_id, options.process_count)
        mesh = make_mesh(options.mesh)
        with contextlib.nullcontext() if processes.is_first() else _silence():
            yield mesh


def _check(options: argparse.Namespace) -> None:
    details = {
        "--coordinator": options.coordinator,
        "--process-id": options.process_id,
        "--process-count": options.process_count,
    }
    given = [name for name, value in details.items() if value is not None]
    if given and not options.distributed:
        raise UserError(f"{given[0]} without --distributed would change nothing")
    if options.distributed and options.mesh is None:
        raise UserError("--distributed needs --mesh, over the devices of all processes")
    if given and len(given) < len(details):
        missing = next(name for name in details if name not in given)
        raise UserError(f"{given[0]} without {missing}; give {', '.join(details)} or none of them")
    if given and options.process_id >= options.process_count:
        raise UserError(
            f"--process-id {options.process_id}: with --process-count {options.process_count} "
            f"the last one is {options.process_count - 1}"
        )
    if options.coordinator and not re.fullmatch(r".+:\d{1,5}", options.coordinator):
        raise UserError(f"--coordinator: expected HOST:PORT, got {options.coordinator!r}")


@contextlib.contextmanager
def _alone_on_stdout() -> Iterator[None]:
    """Sends to stderr what libraries in C++ write to stdout, as Gloo does when it connects."""
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding) as own:
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(own):
                yield
        finally:
            own.flush()
            os.dup2(own.fileno(), 1)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield
