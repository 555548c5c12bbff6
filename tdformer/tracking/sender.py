"""Sender: a thread that keeps a Mirror up to date. Training wakes it, and never waits for it."""

from __future__ import annotations

import sys
import threading

from tdformer.tracking.errors import explain, is_permanent
from tdformer.tracking.mirror import Mirror

SECONDS_BETWEEN = 1.0
"""Seconds between two updates. Points that are logged faster are sent together."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""Seconds until MLflow is tried again. The wait doubles after each failure, up to the second number."""


class Sender:
    """Sends in a thread from the moment it is made. It prints a line when failures begin and when they end."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._news, self._ending, self._tried = threading.Event(), threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._is_complete = self._warned = False
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def first_refusal(self, seconds: float) -> str | None:
        """Wait at most so many seconds for the first try. Return why it can never succeed, or None if it did or still may."""
        if not self._tried.wait(seconds):
            self._warn("it has not answered yet")
        failure = self._failure
        return explain(failure, self._mirror.uri) if failure and is_permanent(failure, self._mirror.uri) else None

    def wake(self) -> None:
        """Tell the thread that there is something to send."""
        self._news.set()

    def finish(self, seconds: float) -> bool:
        """Send the rest, trying once and for so many seconds at most. Tell whether all of it arrived."""
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
        """Note a failure. Tell whether it is a refusal that first_refusal will return, so that nothing is printed here."""
        self._failure = error
        is_awaited = not self._tried.is_set() and not self._warned
        self._tried.set()
        if is_awaited and is_permanent(error, self._mirror.uri):
            return True
        self._warn(explain(error, self._mirror.uri))
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
