"""Makes standard output and standard error safe: whatever happens to a pipe, a disk or a terminal, nothing printed ends a command.

A write that fails is noted and dropped. A character that the terminal's encoding lacks is written in another way. Libraries print
through the same two streams, so this holds for what they print too.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

PATIENCE_S = 10.0
"""Seconds that a run waits for a reader who has stopped reading, before it goes on without them."""
TERMINAL_BYTES, PIPE_BYTES = 128, 4096
"""Bytes that a terminal, or a pipe, takes without making the writer wait, once it takes any."""
DROPPED = b"\n[nobody read the output for a while, and what came here was dropped]\n"
IN_ASCII = dict(zip("…–—±×·▁▂▃▄▅▆▇█", ("...", "-", "-", "+-", "x", "-", *"12345678"), strict=True))
"""Replacements for our own characters where an encoding lacks them."""
ERRORS = "tdformer.legible"
"""The name of the codec error handler `_legible`."""


class SafeFile(io.FileIO):
    """An open file whose writes never fail. `failure` is the first error that the system reported."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.failure: OSError | None = None
        self.on_failure: Callable[[OSError], object] = lambda _: None
        self.patience_s: float | None = None
        """Seconds to wait for a reader. None: as long as it takes."""
        self.is_result = True
        """False if the command does its work for something else than what it prints."""
        self._most = _bytes_at_once(descriptor)
        self._is_stalled = False
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, data: Any, /) -> int:  # by BufferedWriter, with a memoryview
        """Write some of the data, or drop all of it. Return how many bytes are done with."""
        try:
            return self._write_some(data)
        except OSError as error:
            is_first, self.failure = self.failure is None, self.failure or error
            if is_first:
                self.on_failure(error)
            return len(data)

    def _write_some(self, data: memoryview | bytes) -> int:
        was_stalled = self._is_stalled
        while self._is_ready():
            if was_stalled:
                super().write(DROPPED)
            written = super().write(data if self.patience_s is None else data[: self._most])
            if written is not None:  # None: the descriptor does not block, and took nothing
                return written
        return len(data)

    def _is_ready(self) -> bool:
        """Wait until something can be written, for `patience_s` at most. After that, do not wait until the reader reads again."""
        wait_s = 0.0 if self._is_stalled else self.patience_s
        self._is_stalled = not self._poll.poll(None if wait_s is None else 1000 * wait_s)
        return not self._is_stalled


def protect() -> None:
    """Make sys.stdout and sys.stderr safe. A descriptor that is closed is opened on /dev/null, so that no file of ours takes its place."""
    codecs.register_error(ERRORS, _legible)
    for number in (0, 1, 2):
        _open_if_closed(number)
    sys.stdout, sys.stderr = _safe(sys.stdout, 1), _safe(sys.stderr, 2)


def go_on_without_reader() -> None:
    """Let this command, which trains, wait for no reader, and let it say once on stderr that stdout cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if file := _safe_file(stream):
            file.patience_s, file.is_result = PATIENCE_S, False
    if file := _safe_file(sys.stdout):
        file.on_failure = _warn


def lost_output() -> OSError | None:
    """Return why standard output could not be written, or None. A reader who has left, as `head` does, has what they wanted."""
    file = _safe_file(sys.stdout)
    lost = file.failure if file and file.is_result else None
    return None if lost is None or lost.errno == errno.EPIPE else lost


def flush() -> None:
    """Flush both streams."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _warn(error: OSError) -> None:
    if error.errno not in (errno.EPIPE, errno.EIO):  # in these two cases nobody is there
        print(
            f"warning: standard output cannot be written ({error.strerror}); the run goes on without it.",
            file=sys.stderr,
        )


def _safe(stream: TextIO | None, number: int) -> TextIO:
    """Return a safe stream in place of `stream`. One that does not write to the descriptor itself, as a test's, stays."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(SafeFile(number)), "utf-8", ERRORS, "\n", line_buffering=True)
    if isinstance(_file(stream), SafeFile) or not isinstance(_file(stream), io.FileIO) or not isinstance(stream, io.TextIOWrapper):
        return stream
    with suppress(OSError):
        stream.flush()
    by_lines = stream.line_buffering or stream.write_through  # the second is `python -u`
    return io.TextIOWrapper(io.BufferedWriter(SafeFile(stream.fileno())), stream.encoding, ERRORS, "\n", line_buffering=by_lines)


def _safe_file(stream: TextIO | None) -> SafeFile | None:
    file = _file(stream)
    return file if isinstance(file, SafeFile) else None


def _file(stream: TextIO | None) -> object:
    """Return the file that a stream writes to. Under `python -u` no buffer lies between them."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _open_if_closed(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, number)
        os.set_inheritable(number, True)
        if null != number:
            os.close(null)


def _bytes_at_once(descriptor: int) -> int:
    kind = os.fstat(descriptor).st_mode
    if os.isatty(descriptor):
        return TERMINAL_BYTES
    return PIPE_BYTES if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) else sys.maxsize


def _legible(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace one character that cannot be encoded. Bytes of a file name that is no text are written as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return character.encode("ascii", "surrogateescape"), error.start + 1
    return IN_ASCII.get(character) or character.encode("ascii", "backslashreplace").decode(), error.start + 1
