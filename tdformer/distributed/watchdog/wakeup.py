"""A wakeup pipe ends another thread's `select`."""

from __future__ import annotations

import os


class WakeupPipe:
    """One thread waits for this file with `select`. Another one ends the wait with `wake`."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable."""
        return self._read

    def wake(self) -> None:
        """End the wait."""
        os.write(self._write, b"x")

    def clear(self) -> None:
        """Make the pipe ready for the next wait. It must be readable, or this call blocks."""
        os.read(self._read, 4096)
