"""Many mutated files of one reader, one after another in a process of its own.

What a reader may do there is limited: it may map `ROOM` bytes more than the process has when all
valid files are loaded, and take `LONGEST` seconds for a file. A process that ends or hangs leaves
its last file behind, which tells what did it.
"""

import dataclasses
import faulthandler
import multiprocessing
import resource
import time
import warnings
from pathlib import Path

from deltakv_jax.weights.native import one_line
from scripts.fuzzing.mutations import Random
from scripts.fuzzing.readers import READERS, loads, mutated

ROOM = 256 << 20
LONGEST = 10.0
_HANGS = 60.0  # seconds until a process is ended that its own clock cannot stop


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of the files of a reader.

    Attributes:
      loaded: files that loaded all the same.
      refused: files that got an error of one line.
      slowest: seconds that the slowest took.
      fault: what happened besides, or None; the file is left in the folder.
    """

    loaded: int
    refused: int
    slowest: float
    fault: str | None


def run(reader: str, count: int, seed: int, folder: Path) -> Result:
    """Has a new process read `count` files; case k of a seed is always the same file."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(reader, count, seed, folder, sender))
    process.start()
    sender.close()
    result = Result(0, 0, 0.0, None)
    try:
        while result.fault is None and result.loaded + result.refused < count:
            result = receiver.recv()
    except EOFError:
        process.join()
        done = result.loaded + result.refused
        fault = f"the process ended with status {process.exitcode} after {done} files or more"
        return dataclasses.replace(result, fault=fault)
    process.join()
    return result


def _work(reader: str, count: int, seed: int, folder: Path, sender) -> None:
    warnings.simplefilter("error")
    models = READERS[reader]()
    for model in models:
        if not loads(model, folder):
            raise SystemExit(f"{reader}: a valid file does not load")
    _limit_memory()
    result = Result(0, 0, 0.0, None)
    for case in range(count):
        result = _one(result, mutated(models, Random(f"{reader} {seed} {case}")), folder, case)
        if result.fault or case + 1 == count or not (case + 1) % 100:
            sender.send(result)
        if result.fault:
            return


def _one(result: Result, model, folder: Path, case: int) -> Result:
    faulthandler.dump_traceback_later(_HANGS, exit=True)
    started = time.perf_counter()
    fault = None
    try:
        loaded = loads(model, folder)
    except BaseException as error:  # whatever is no UserError is what is looked for
        loaded, fault = False, f"case {case}: {type(error).__name__}: {one_line(error)}"
    seconds = time.perf_counter() - started
    faulthandler.cancel_dump_traceback_later()
    if seconds > LONGEST:
        fault = f"case {case}: it took {seconds:.1f} s"
    return Result(
        result.loaded + loaded,
        result.refused + (not loaded and fault is None),
        max(result.slowest, seconds),
        fault,
    )


def _limit_memory() -> None:
    """Allows `ROOM` more bytes of address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
