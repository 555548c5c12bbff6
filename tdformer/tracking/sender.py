"""The thread that keeps a Mirror up to date. Training tells it that there is news, and never waits for it."""

from __future__ import annotations

import sys
import threading

from tdformer.tracking.errors import explain, is_permanent
from tdformer.tracking.mirror import Mirror

SECONDS_BETWEEN = 1.0
"""Between two updates: what is logged faster travels together."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""Before MLflow is tried again: twice as long after each failure."""


class Sender:
    """Begins at once. Failures are told when they begin and when they end; only `first_refusal` and `finish` report them."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._news, self._ending, self._tried = threading.Event(), threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._is_complete = self._warned = False
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def first_refusal(self, seconds: float) -> str | None:
        """Wait until the first try has ended, for so long. Why it can never succeed; None if it did, or still may."""
        if not self._tried.wait(seconds):
            self._warn("it has not answered yet")
        failure = self._failure
        return explain(failure) if failure and is_permanent(failure, self._mirror.uri) else None

    def wake(self) -> None:
        """There is something to send."""
        self._news.set()

    def finish(self, seconds: float) -> bool:
        """Send the rest, once and within so many seconds. Whether all of it arrived."""
        self._ending.set()
        self._news.set()
        self._thread.join(seconds)
        return self._is_complete

    def _run(self) -> None:
        wait = FIRST_WAIT_S
        while not self._is_complete:
            self._news.clear()
            is_last = self._ending.is_set()
            try:
                sent = self._mirror.update()
            except Exception as error:  # MLflow passes on whatever its database or server raises
                if self._fail(error) or is_last:
                    return
                self._ending.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
            else:
                self._succeed(sent)
                wait, self._is_complete = FIRST_WAIT_S, is_last
                if not is_last:
                    self._ending.wait(SECONDS_BETWEEN)
                    self._news.wait()

    def _fail(self, error: Exception) -> bool:
        """Whether that was the first refusal, and is raised by who waits for it."""
        self._failure = error
        is_awaited = not self._tried.is_set() and not self._warned
        self._tried.set()
        if is_awaited and is_permanent(error, self._mirror.uri):
            return True
        self._warn(explain(error))
        return False

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            _say(
                f"warning: MLflow at {self._mirror.uri} takes nothing now ({reason}); training goes on, and what it lacks waits in "
                f"{self._mirror.run_dir}."
            )

    def _succeed(self, sent: int) -> None:
        self._failure = None
        self._tried.set()
        if self._warned:
            self._warned = False
            _say(f"MLflow at {self._mirror.uri} answers again: {sent} points that waited were sent.")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
