"""Opens URLs with fsspec's backends, and explains their errors in one sentence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.storage.locations import BACKENDS, check_location
from data_pipelines.storage.passing_trouble import ABOUT_THE_PATH, reason_of

SILENCE_SECONDS = 20.0
"""A server that sends no byte for so long counts as silent."""
BLOCK_BYTES = 4 * 2**20
"""Size of one request to an object store. The backends' default of 50 MB would count as silence on a slow connection."""
PASSING_STATUSES = (408, 425, 429)
"""HTTP statuses below 500 with which a server asks for another attempt later."""
TRY_LATER = "check the network and the server, and the same command goes on when it can be read"


class TransferError(UserError):
    """A remote file cannot be read, and another attempt would not change that. It says nothing about the samples in the file."""


def open_filesystem(url: str) -> Any:
    """Make fsspec's file system for a URL. Raises TransferError if its package is missing, or what explain_error makes of a failure.

    It must be made in the process that uses it: fsspec keeps one per process and thread, and none survives a fork.
    """
    import fsspec  # takes 0.1 s, which a run on local data saves

    check_location(url)
    scheme = url.split(":", 1)[0]
    try:
        return fsspec.core.url_to_fs(url, **_http_options() if scheme.startswith("http") else {})[0]
    except ImportError:
        package = BACKENDS[scheme]
    except Exception as error:
        if "Protocol not known" not in str(error):
            raise explain_error(url, error) from None
        package = BACKENDS[scheme]
    raise TransferError(f"{url} cannot be read without the Python package {package}; install it: pip install {package}.")


def _http_options() -> dict[str, Any]:
    import aiohttp

    # total=None: a shard may take longer than aiohttp's default of five minutes.
    # trust_env: clusters set proxies in the environment, and credentials in ~/.netrc.
    timeout = aiohttp.ClientTimeout(total=None, connect=SILENCE_SECONDS, sock_connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


def stream_options(url: str) -> dict[str, int]:
    """The arguments with which a backend reads a file from start to end in few requests."""
    if url.startswith("http"):
        return {"block_size": 0, "size": 1}  # block_size 0 means one plain GET. A size, even a wrong one, avoids a HEAD before it.
    return {"block_size": 0 if url.startswith("hf:") else BLOCK_BYTES}


def explain_error(url: str, error: BaseException) -> TransferError | UnavailableError:
    """Turn a backend's error into one sentence. It is an UnavailableError if another attempt may succeed."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return TransferError(f"{url} was not found; check the address.")
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__:
        return TransferError(f"{url} may not be read (no permission); check the address and your credentials.")
    if isinstance(error, TimeoutError):
        return UnavailableError(f"{url} cannot be read now: no answer for {SILENCE_SECONDS:g} seconds; {TRY_LATER}.")
    if isinstance(status, int):
        return _explain_status(url, status, getattr(error, "headers", None))
    reason = reason_of(error).partition("\n")[0][:200]
    if _is_lasting(error):
        return TransferError(f"{url} cannot be read ({reason}); check the address and the server's certificate.")
    return UnavailableError(f"{url} cannot be read now ({reason}); {TRY_LATER}.")


def _is_lasting(error: BaseException) -> bool:
    """Tell whether each further attempt would give the same error: a backend refuses the address itself, or the server's certificate."""
    if isinstance(error, OSError) and error.errno in ABOUT_THE_PATH:
        return True
    refuses_address = isinstance(error, ValueError | TypeError | NotImplementedError)
    return refuses_address or "Certificate" in type(error).__name__  # the backends share no class of errors


def _explain_status(url: str, status: int, headers: Mapping[str, str] | None) -> TransferError | UnavailableError:
    if status >= 500 or status in PASSING_STATUSES:
        pause = seconds_to_wait((headers or {}).get("Retry-After"))
        return UnavailableError(f"{url} cannot be read now: the server answered HTTP {status}; {TRY_LATER}.", pause)
    return TransferError(f"{url}: the server answered HTTP {status}; check the address and the server.")


def seconds_to_wait(retry_after: str | None) -> float:
    """Read the header Retry-After, which is a number of seconds or a date. Returns 0 without one, and for anything else."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
