"""Compares the classes that a source holds with those of the training set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from unicodedata import normalize

from data_pipelines.errors import DataError


def known_classes(found: Iterable[str], classes: Sequence[str] | None, origin: object, what: str) -> list[str]:
    """Return the classes of the training set, or those found, sorted, if this is the training set.

    what: what holds a class, for messages: "class folders". Raises DataError for a class that the training set lacks, and for two names
    that differ only in their Unicode form.
    """
    found = sorted(found)
    names = list(classes or found)
    for name in found:
        if other := other_form(name, names):
            raise DataError(
                f"{origin}: {what} {name!a} and {other!a} are one name in two Unicode forms, as macOS writes names its own way; "
                f"rename one like the other: convmv -r -f utf8 -t utf8 --nfc --notest {origin}"
            )
    if unknown := [name for name in found if name not in set(names)]:
        raise DataError(f"{origin}: {what} {unknown[:5]} do not occur in the training set; remove or rename them.")
    return names


def other_form(name: str, names: Sequence[str]) -> str | None:
    """Return another name that looks the same, since it has the same letters in another Unicode form."""
    if name.isascii():
        return None
    return next((other for other in names if other != name and normalize("NFC", other) == normalize("NFC", name)), None)
