"""Where a data set may lie: a local folder or a URL. What a URL may be, and how its files are read."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from data_pipelines.errors import DataError, UserError

BACKENDS = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
    "file": "fsspec",
}
"""The schemes that are read, and for each the Python package that reads it."""
AZURE = ("az", "abfs", "abfss")

SILENCE_SECONDS = 20.0
"""After so long without a byte a server counts as silent."""
PAUSES = (1.0, 4.0)
"""Seconds to wait before the second and the third attempt."""
CHUNK_BYTES = 2**20
BLOCK_BYTES = 4 * 2**20
"""What is asked of an object store at once. Its own default (50 MB) would count as silence on a slow line."""

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # two letters or more: C:\data is a path
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
T = TypeVar("T")


class TransferError(DataError):
    """A remote file could not be read. `passing`: another attempt may succeed."""

    def __init__(self, text: str, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


# --- names -------------------------------------------------------------------------------------------------


def check_location(text: str) -> str:
    """A local path or a URL, unchanged. Raises UserError for what is neither.

    Libraries below run the rest of a ``pipe:`` URL as a shell command, and parse URLs more loosely than a reader does
    (blanks before a scheme, control characters within). So only what is plainly a path or plainly a URL of a known scheme passes.
    """
    if not text or text != text.strip() or not text.isprintable():
        raise UserError(f"data location {text!r} is empty or holds blanks at an end or control characters; give a folder or a URL.")
    scheme = SCHEME.match(text)
    if (scheme and scheme[1] not in BACKENDS) or "::" in text or (not scheme and "://" in text):
        raise UserError(
            f"data location {_shown(text)} is refused: give a folder or one URL of {', '.join(BACKENDS)}; "
            "chained URLs (::) and URLs that execute a command (such as pipe:) are refused always "
            "(a folder whose name holds a colon is given as ./NAME)."
        )
    if scheme:
        _check_url(text)
    return text


def _check_url(url: str) -> None:
    scheme, authority = url.split(":", 1)[0], url.partition("://")[2].partition("/")[0]
    if "@" in authority and not (scheme in AZURE and ":" not in authority):
        raise UserError(
            f"data location {_shown(url)} is refused: it holds credentials, which would appear in logs; "
            f"give it without them and set them up where {BACKENDS[scheme]} looks for them (for http: ~/.netrc)."
        )
    if re.search(r"[?#\\\s]", url):
        raise UserError(
            f"data location {_shown(url)} is refused: it holds a query (?), a fragment (#), a backslash or a blank; leave it out."
        )
    if not _well_formed(url):
        form = "file:///FOLDER" if scheme == "file" else f"{scheme}://{'HOST' if scheme.startswith('http') else 'BUCKET'}/FOLDER"
        raise UserError(f"data location {_shown(url)} is no whole URL; expected {form}.")


def _well_formed(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme.startswith("http") else parts.netloc
        port_valid = parts.port is None or parts.port > 0 if parts.scheme.startswith("http") else True
    except ValueError:  # a port that is no number
        return False
    is_file = parts.scheme == "file"
    return "://" in url and port_valid and bool(host) != is_file and (not is_file or parts.path.startswith("/"))


def _shown(text: str) -> str:
    """A location as messages may show it: without a password or an access token."""
    return re.sub(r"[?#].*", "?…", re.sub(r"//.*@", "//…@", text))


def is_remote(location: str) -> bool:
    """Whether a checked location is a URL. ``file:`` URLs are: their shards are copied to the cache too."""
    return SCHEME.match(location) is not None


def join(location: str, name: str) -> str:
    """The place of a file of the data set at `location`. Raises DataError for names that may lead out of it.

    A remote manifest is not to be trusted with names such as ``../x``.
    """
    if not FILE_NAME.fullmatch(name):
        raise DataError(f"the data set at {location} names a file {name!r}; expected letters, digits, '_', '-' and '.' alone.")
    return f"{location.rstrip('/')}/{name}" if is_remote(location) else os.path.join(location, name)


# --- reading -----------------------------------------------------------------------------------------------


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


def _filesystem(url: str) -> Any:
    """fsspec's file system of a URL, made in this process: fsspec keeps one per process and thread, and none survives a fork."""
    import fsspec  # 0.1 s that a run on local data does not need

    check_location(url)
    scheme = url.split(":", 1)[0]
    try:
        return fsspec.core.url_to_fs(url, **_http_options() if scheme.startswith("http") else {})[0]
    except ImportError:
        package = BACKENDS[scheme]
    except Exception as error:
        if "Protocol not known" not in str(error):
            raise _explained(url, error) from None
        package = BACKENDS[scheme]
    raise TransferError(f"{url} cannot be read without the Python package {package}; install it: pip install {package}.", passing=False)


def _http_options() -> dict[str, Any]:
    import aiohttp

    # total=None: a shard may take longer than aiohttp's five minutes. trust_env: proxies and ~/.netrc, as clusters have them.
    timeout = aiohttp.ClientTimeout(total=None, connect=SILENCE_SECONDS, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


def _stream_options(url: str) -> dict[str, int]:
    if url.startswith("http"):
        return {"block_size": 0, "size": 1}  # 0: one plain GET. Any size but none spares a HEAD before it.
    return {"block_size": 0 if url.startswith("hf:") else BLOCK_BYTES}


def _explained(url: str, error: Exception) -> TransferError:
    """A backend's error in one sentence."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return TransferError(f"{url} was not found; check the address.", passing=False)
    if isinstance(error, PermissionError) or status in (401, 403):
        return TransferError(f"{url} may not be read (no permission); check the address and your credentials.", passing=False)
    if isinstance(error, TimeoutError):
        return TransferError(f"{url}: no answer for {SILENCE_SECONDS:g} seconds; check the address and the network.", passing=True)
    if isinstance(status, int):
        passing = status >= 500 or status in (408, 429)
        return TransferError(f"{url}: the server answered HTTP {status}; check the address and the server.", passing)
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return TransferError(f"{url} cannot be read ({reason}); check the address and the network.", passing=True)
