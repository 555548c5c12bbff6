"""TODO."""

from __future__ import annotations

from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.storage.locations import BACKENDS, check_location

SILENCE_SECONDS = 20.0
"""After so long without a byte a server counts as silent."""
BLOCK_BYTES = 4 * 2**20
"""What is asked of an object store at once. Its own default (50 MB) would count as silence on a slow line."""


class TransferError(DataError):
    """A remote file could not be read. `passing`: another attempt may succeed."""

    def __init__(self, text: str, passing: bool = False) -> None:
        super().__init__(text)
        self.passing = passing


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
