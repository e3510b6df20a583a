"""Progress of a long run on stderr: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30


@contextmanager
def shown(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Gives a function to be told of each few of `total` units done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(total, unit)
        return
    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(unit, total=total)
        yield lambda done: progress.advance(task, done)


def _lines(total: int, unit: str) -> Callable[[int], None]:
    """Writes a line once in a while, so that a log shows life and a short run stays quiet."""
    finished, said = 0, time.monotonic()

    def advance(done: int) -> None:
        nonlocal finished, said
        finished += done
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            sys.stderr.write(f"{finished} of {total} {unit}\n")

    return advance
