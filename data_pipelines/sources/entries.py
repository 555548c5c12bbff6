"""Tells why an entry of a folder or a tar with the name of an image is no sample. What looks like a sample is never dropped silently."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from data_pipelines.formats.images import EXTENSION_OF, looks_like_image
from data_pipelines.sources.base import LeftOut

NO_JPEG_OR_PNG = "it is no JPEG or PNG; convert it"
LINK_TO_NOTHING = "it is a link to nothing; mend or remove it"
TOO_DEEP = "it lies deeper than <class>/<image>; move it up, or list the images in text files (--layout lists)"


def why_no_file(path: Path) -> str | None:
    """Say why an entry of a folder is no plain file, or return None if it is one. Raises OSError if it cannot be looked at."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR):
            return LINK_TO_NOTHING
        if error.errno == errno.ELOOP:
            return "it is a link that leads back to itself; mend or remove it"
        raise
    if S_ISREG(mode):
        return None
    return "it is a folder; rename or remove it" if S_ISDIR(mode) else "it is no plain file; remove it"


def why_no_image(path: Path) -> str | None:
    """Say why a file with the name of an image is none that can be read, or return None. Its content is not looked at."""
    return why_no_file(path) or (None if path.suffix.lower() in EXTENSION_OF else NO_JPEG_OR_PNG)


def files_below(folder: Path, reason: str, is_meant: Callable[[str], bool] = looks_like_image) -> Iterator[LeftOut]:
    """List the files with such names anywhere in a folder, through links too. Raises OSError if it cannot be listed."""
    seen: set[str] = set()

    def stop(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(place, name)) not in seen)
        yield from (LeftOut(os.path.join(place, name), reason) for name in sorted(files) if is_meant(name))
