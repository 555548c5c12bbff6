"""Tries again what cannot be read now, with growing pauses, until it can be read or the patience is over."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from data_pipelines.errors import UnavailableError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the second attempt, and at most between two later ones. A server may ask for longer pauses."""
GLANCE_SECONDS = 0.2
"""While it waits, this process looks so often whether it was told to stop."""

Result = TypeVar("Result")


def warn(text: str) -> None:
    """Print one line on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def inform(text: str) -> None:
    """Print one line on stderr, of something that is well again."""
    print(f"note: {text}", file=sys.stderr, flush=True)


def never() -> bool:
    """False always: nobody ends the wait before its time."""
    return False


def tell_nobody() -> None:
    """Do nothing: nobody watches whether this process goes on."""


@dataclass(frozen=True)
class Patience:
    """Says how long passing trouble is waited for, and who is told meanwhile.

    seconds: how long after the first failure attempts are made. warn: is called with one line when a wait begins, and inform: with one
    when it ends well.
    should_stop: ends the wait as soon as it is true.
    phase: makes the context of the wait, and alive: is called all the while, both for a watchdog.
    It can be pickled to other processes if its functions can.
    """

    seconds: float = 60.0
    warn: Callable[[str], object] = warn
    inform: Callable[[str], object] = inform
    should_stop: Callable[[], bool] = never
    phase: Callable[[], AbstractContextManager[object]] = nullcontext
    alive: Callable[[], object] = tell_nobody


SOME_PATIENCE, NO_PATIENCE = Patience(), Patience(0.0)
"""The patience where nobody says how much, and the one that makes a single attempt."""


def patiently(action: Callable[[], Result], patience: Patience) -> Result:
    """Call `action` again, with growing pauses, as long as it raises UnavailableError and the patience lasts.

    Raises the last UnavailableError when the patience is over, or when should_stop says so.
    """
    try:
        return action()
    except UnavailableError as error:
        if patience.seconds <= 0 or patience.should_stop():
            raise
        patience.warn(f"{error} Before that, this command tries again by itself for {_in_words(patience.seconds)}.")
        failure, began = error, time.monotonic()
    with patience.phase():
        result = _try_again(action, patience, failure)
    patience.inform(f"what could not be read can be read again, after {time.monotonic() - began:.0f} seconds; this command goes on.")
    return result


def _try_again(action: Callable[[], Result], patience: Patience, failure: UnavailableError) -> Result:
    deadline = time.monotonic() + patience.seconds
    for pause in _pauses():
        left = deadline - time.monotonic()
        _wait(min(max(pause, failure.retry_after_s), left), patience)
        if left <= 0 or patience.should_stop():
            raise failure
        try:
            return action()
        except UnavailableError as error:
            failure = error
    raise AssertionError("pauses do not end")


def _pauses() -> Iterator[float]:
    """Yield seconds that double up to the longest pause. A random share keeps many processes from trying at the same moment.

    The draws are not those of the global generator, which belongs to the augmentation.
    """
    random_share, pause = random.SystemRandom(), FIRST_PAUSE
    while True:
        yield pause * random_share.uniform(0.75, 1.25)
        pause = min(2 * pause, LONGEST_PAUSE)


def _wait(seconds: float, patience: Patience) -> None:
    end = time.monotonic() + seconds
    patience.alive()
    while (left := end - time.monotonic()) > 0 and not patience.should_stop():
        time.sleep(min(left, GLANCE_SECONDS))
        patience.alive()


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"
