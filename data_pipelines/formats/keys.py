"""Makes and checks the keys of samples. A key is unique, and has no dots, since WebDataset cuts names at a dot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from posixpath import splitext
from unicodedata import category

from data_pipelines.errors import DataError


def key_of(name: str) -> str:
    """Make a key of a file name: `ant/a.b.jpeg` becomes `ant/a_b`. Folders stay in the key, since file names alone may repeat."""
    return splitext(name)[0].lstrip("/").replace(".", "_")


def is_utf8(name: str) -> bool:
    """False for a name with bytes that are not UTF-8. Python represents such bytes by lone surrogates."""
    return name.encode("utf-8", "replace") == name.encode("utf-8", "surrogatepass")


def is_valid_key(name: str) -> bool:
    """True if a key can stand in a tar and in a message: no control characters, line breaks, lone surrogates, or path to elsewhere."""
    hidden = any(category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)
    return bool(name) and not hidden and not name.startswith("/") and ".." not in name.split("/")


def check_unique_keys(keys: Iterable[str], origin: Callable[[int], str]) -> None:
    """Raises DataError, naming the origins of both samples, if two samples have the same key."""
    first_with: dict[str, int] = {}
    for index, key in enumerate(keys):
        if (other := first_with.setdefault(key, index)) != index:
            raise DataError(f"{origin(other)} and {origin(index)} would have the same key {key}; rename or remove one of them.")
