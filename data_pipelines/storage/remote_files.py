"""Reads remote files as streams of bytes, with a limit on silence and with retries."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Any, TypeVar

from data_pipelines.errors import DataError, UnavailableError
from data_pipelines.storage import backends

RETRY_PAUSES = (1.0, 4.0)
"""Seconds to wait before the second and before the third attempt."""
CHUNK_BYTES = 2**20

T = TypeVar("T")


def read_small(url: str, limit_bytes: int) -> bytes:
    """Read a small remote file as a whole. Raises DataError if it has more than `limit_bytes`, and what stream_bytes raises."""

    def attempt() -> bytes:
        content = bytearray()
        with closing(stream_bytes(url)) as chunks:
            for chunk in chunks:
                content += chunk
                if len(content) > limit_bytes:
                    raise DataError(f"{url} has more than {limit_bytes} bytes, too many for its kind; check the address.")
        return bytes(content)

    return with_retries(attempt)


def with_retries(attempt: Callable[[], T]) -> T:
    """Call `attempt` up to three times, as long as it raises UnavailableError, and its server does not ask for a longer pause."""
    for pause in RETRY_PAUSES:
        try:
            return attempt()
        except UnavailableError as error:
            if error.retry_after_s > pause:
                raise
        time.sleep(pause)
    return attempt()


def stream_bytes(url: str) -> Generator[bytes, None, None]:
    """Yield the bytes of a remote file in chunks of no fixed size. Raises TransferError or UnavailableError, with the URL.

    A thread of its own reads the file. The backends differ in their timeouts and internal retries, so only a queue with a timeout
    bounds the silence of all of them.
    """
    filesystem = backends.open_filesystem(url)
    chunks: queue.Queue[bytes | Exception] = queue.Queue(maxsize=4)
    stopped = threading.Event()
    threading.Thread(target=_fill_queue, args=(filesystem, url, chunks, stopped), daemon=True).start()
    try:
        while chunk := _next_chunk(chunks, url):
            yield chunk
    finally:
        stopped.set()
        with suppress(queue.Empty):  # an empty queue lets the thread put its last chunk and end
            while True:
                chunks.get_nowait()


def _next_chunk(chunks: queue.Queue[bytes | Exception], url: str) -> bytes:
    try:
        chunk = chunks.get(timeout=backends.SILENCE_SECONDS)
    except queue.Empty:
        chunk = TimeoutError()
    if isinstance(chunk, Exception):
        raise backends.explain_error(url, chunk) from None
    return chunk


def _fill_queue(filesystem: Any, url: str, chunks: queue.Queue[bytes | Exception], stopped: threading.Event) -> None:
    try:
        with filesystem.open(url, "rb", **backends.stream_options(url)) as file:
            chunk = b"first"
            while chunk and not stopped.is_set():
                chunk = file.read(CHUNK_BYTES)
                chunks.put(chunk)
    except Exception as error:  # the backends share no class of errors
        chunks.put(error)
