"""TODO."""

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
"""The schemes that are read, and for each the Python package that reads it."""
AZURE = ("az", "abfs", "abfss")
SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # two letters or more: C:\data is a path
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


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
