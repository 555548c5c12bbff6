"""Decides what may name a data set: a local path or a URL of a known scheme."""

from __future__ import annotations

import os
import re
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
"""The URL schemes that can be read, and the Python package that reads each."""
AZURE = ("az", "abfs", "abfss")

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # at least two letters, since C:\data is a path
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def check_location(text: str) -> str:
    """Return a local path or a URL unchanged. Raises UserError for anything else.

    The check is strict for safety. The libraries below run the rest of a ``pipe:`` URL as a shell command. They also parse URLs
    loosely, for example with blanks before the scheme. So a location must plainly be a path, or plainly a URL of a known scheme.
    """
    if not text or text != text.strip() or not text.isprintable():
        raise UserError(f"data location {text!r} is empty or holds blanks at an end or control characters; give a folder or a URL.")
    scheme = SCHEME.match(text)
    if (scheme and scheme[1] not in BACKENDS) or "::" in text or (not scheme and "://" in text):
        raise UserError(
            f"data location {_redacted(text)} is refused: give a folder or one URL of {', '.join(BACKENDS)}; "
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
            f"data location {_redacted(url)} is refused: it holds credentials, which would appear in logs; "
            f"give it without them and set them up where {BACKENDS[scheme]} looks for them (for http: ~/.netrc)."
        )
    if re.search(r"[?#\\\s]", url):
        raise UserError(
            f"data location {_redacted(url)} is refused: it holds a query (?), a fragment (#), a backslash or a blank; leave it out."
        )
    if not _is_well_formed(url):
        form = "file:///FOLDER" if scheme == "file" else f"{scheme}://{'HOST' if scheme.startswith('http') else 'BUCKET'}/FOLDER"
        raise UserError(f"data location {_redacted(url)} is no whole URL; expected {form}.")


def _is_well_formed(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme.startswith("http") else parts.netloc
        port_valid = parts.port is None or parts.port > 0 if parts.scheme.startswith("http") else True
    except ValueError:  # the port is no number
        return False
    is_file = parts.scheme == "file"
    return "://" in url and port_valid and bool(host) != is_file and (not is_file or parts.path.startswith("/"))


def _redacted(text: str) -> str:
    """Remove passwords and access tokens from a location, so that messages may show it."""
    return re.sub(r"[?#].*", "?…", re.sub(r"//.*@", "//…@", text))


def is_remote(location: str) -> bool:
    """True if a checked location is a URL. A ``file:`` URL counts as remote: its shards are copied into the cache too."""
    return SCHEME.match(location) is not None


def join_location(location: str, name: str) -> str:
    """Append a file name to the location of a data set. Raises DataError for a name that may lead out of it.

    The names come from a manifest. A remote manifest is not to be trusted with a name such as ``../x``.
    """
    if not FILE_NAME.fullmatch(name):
        raise DataError(f"the data set at {location} names a file {name!r}; expected letters, digits, '_', '-' and '.' alone.")
    return f"{location.rstrip('/')}/{name}" if is_remote(location) else os.path.join(location, name)
