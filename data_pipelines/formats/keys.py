"""Keys of samples: each one once, and without the dots at which WebDataset would cut them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from posixpath import splitext
from unicodedata import category

from data_pipelines.errors import DataError


def key_of(name: str) -> str:
    """`ant/a.b.jpeg` -> `ant/a_b`. Folders stay in the key, since names alone may repeat."""
    return splitext(name)[0].lstrip("/").replace(".", "_")


def is_utf8(name: str) -> bool:
    """False for a name with bytes that are no UTF-8, which Python reads as lone surrogates."""
    return name.encode("utf-8", "replace") == name.encode("utf-8", "surrogatepass")


def is_storable(name: str) -> bool:
    """Whether a key can stand in a tar and in a message: no control characters or line breaks, no lone surrogates, no way out."""
    hidden = any(category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)
    return bool(name) and not hidden and not name.startswith("/") and ".." not in name.split("/")


def refuse_same_keys(keys: Iterable[str], place: Callable[[int], str]) -> None:
    """Raises DataError with the places of two samples that have the same key."""
    first_with: dict[str, int] = {}
    for index, key in enumerate(keys):
        if (other := first_with.setdefault(key, index)) != index:
            raise DataError(f"{place(other)} and {place(index)} would have the same key {key}; rename or remove one of them.")
