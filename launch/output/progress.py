"""Shows the progress of a command on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances the progress by a number. A total of None is an unknown one.

    A terminal shows a bar. Elsewhere, such as in the log of a job, one line is printed every half minute.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        last_line, count = time.monotonic(), 0

        def advance(done: int) -> None:
            nonlocal last_line, count
            progress.advance(task, done)
            count += done
            if not console.is_terminal and time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                print(f"{description}: {count} of {total or '?'}", file=sys.stderr, flush=True)

        yield advance
