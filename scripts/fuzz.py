"""Reads mutated files: each must load or give an error of one line.

    python scripts/fuzz.py [--reader NAME …] [--count 20000] [--seed N]

Valid files below 16 KB have their bytes flipped, overwritten, cut, removed, repeated and spliced;
each reader's files are read one after another in a process of its own, which may take 256 MB more
than it had and 10 seconds a file. A crash, a hang or a large allocation is reported with the folder
in which the file lies, and the exit status is 1. It runs on Linux, a minute or so for each reader.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.fuzzing.campaign import run
from scripts.fuzzing.readers import READERS


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the readers that are asked for."""
    args = _make_parser().parse_args(argv)
    seed = time.time_ns() % 2**32 if args.seed is None else args.seed
    faults = [_run(reader, args.count, seed) for reader in args.reader]
    return int(any(faults))


def _run(reader: str, count: int, seed: int) -> bool:
    """Whether a reader failed; its line is printed either way."""
    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    result = run(reader, count, seed, folder)
    print(
        f"{reader}: {result.loaded + result.refused} files, {result.loaded} loaded, "
        f"{result.refused} refused, slowest {result.slowest:.2f} s, "
        f"{time.perf_counter() - started:.0f} s in all, seed {seed}",
        flush=True,
    )
    if result.fault:
        print(f"{reader}: FAULT: {result.fault}; the file is in {folder}", flush=True)
        return True
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return False


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reader", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--count", type=int, default=20_000, help="files per reader")
    parser.add_argument("--seed", type=int, help="of the random mutations; by default the time")
    return parser


if __name__ == "__main__":
    sys.exit(main())
