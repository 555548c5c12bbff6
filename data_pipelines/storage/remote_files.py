"""Where a data set may lie: a local folder or a URL. What a URL may be, and how its files are read."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Any, TypeVar

from data_pipelines.errors import DataError
from data_pipelines.storage.backends import SILENCE_SECONDS, TransferError, _explained, _filesystem, _stream_options

PAUSES = (1.0, 4.0)
"""Seconds to wait before the second and the third attempt."""
CHUNK_BYTES = 2**20
T = TypeVar("T")


def read_small(url: str, limit_bytes: int) -> bytes:
    """The whole of a small remote file. Raises DataError if it cannot be read or has more than `limit_bytes`."""

    def attempt() -> bytes:
        content = bytearray()
        with closing(stream(url)) as chunks:
            for chunk in chunks:
                content += chunk
                if len(content) > limit_bytes:
                    raise DataError(f"{url} has more than {limit_bytes} bytes, too many for its kind; check the address.")
        return bytes(content)

    return persistently(attempt)


def persistently(attempt: Callable[[], T]) -> T:
    """Try up to three times while the failure may pass."""
    for pause in PAUSES:
        try:
            return attempt()
        except TransferError as error:
            if not error.passing:
                raise
        time.sleep(pause)
    return attempt()


def stream(url: str) -> Generator[bytes, None, None]:
    """The bytes of a remote file in chunks of no fixed size. Raises TransferError naming the URL.

    Read by a thread of its own: backends differ in their timeouts and inner retries, and only so silence is bounded for each of them.
    """
    filesystem = _filesystem(url)
    chunks: queue.Queue[bytes | Exception] = queue.Queue(maxsize=4)
    stopped = threading.Event()
    threading.Thread(target=_pump, args=(filesystem, url, chunks, stopped), daemon=True).start()
    try:
        while chunk := _next(chunks, url):
            yield chunk
    finally:
        stopped.set()
        with suppress(queue.Empty):  # makes room for a thread that waits to put
            while True:
                chunks.get_nowait()


def _next(chunks: queue.Queue[bytes | Exception], url: str) -> bytes:
    try:
        chunk = chunks.get(timeout=SILENCE_SECONDS)
    except queue.Empty:
        chunk = TimeoutError()
    if isinstance(chunk, Exception):
        raise _explained(url, chunk) from None
    return chunk


def _pump(filesystem: Any, url: str, chunks: queue.Queue[bytes | Exception], stopped: threading.Event) -> None:
    try:
        with filesystem.open(url, "rb", **_stream_options(url)) as file:
            chunk = b"first"
            while chunk and not stopped.is_set():
                chunk = file.read(CHUNK_BYTES)
                chunks.put(chunk)
    except Exception as error:  # the backends share no class of errors
        chunks.put(error)
