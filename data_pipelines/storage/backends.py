"""Opens URLs with fsspec's backends, and explains their errors in one sentence."""

from __future__ import annotations

from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.storage.locations import BACKENDS, check_location

SILENCE_SECONDS = 20.0
"""A server that sends no byte for so long counts as silent."""
BLOCK_BYTES = 4 * 2**20
"""Size of one request to an object store. The backends' default of 50 MB would count as silence on a slow connection."""


class TransferError(DataError):
    """A remote file could not be read. `transient`: another attempt may succeed."""

    def __init__(self, text: str, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient


def open_filesystem(url: str) -> Any:
    """Make fsspec's file system for a URL. Raises TransferError if its package is missing or it cannot be made.

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
    raise TransferError(f"{url} cannot be read without the Python package {package}; install it: pip install {package}.", transient=False)


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


def explain_error(url: str, error: Exception) -> TransferError:
    """Turn a backend's error into one sentence, and decide whether another attempt may succeed."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return TransferError(f"{url} was not found; check the address.", transient=False)
    if isinstance(error, PermissionError) or status in (401, 403):
        return TransferError(f"{url} may not be read (no permission); check the address and your credentials.", transient=False)
    if isinstance(error, TimeoutError):
        return TransferError(f"{url}: no answer for {SILENCE_SECONDS:g} seconds; check the address and the network.", transient=True)
    if isinstance(status, int):
        transient = status >= 500 or status in (408, 429)
        return TransferError(f"{url}: the server answered HTTP {status}; check the address and the server.", transient)
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return TransferError(f"{url} cannot be read ({reason}); check the address and the network.", transient=True)
