"""Finds the shards that a user names by a folder, a text file, or a path or URL in WebDataset's brace notation."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import braceexpand

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.keys import is_valid_key
from data_pipelines.storage.locations import check_location, is_remote, join_location
from data_pipelines.storage.passing_trouble import read_error, reading

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class ShardList:
    """The shards of one data set, in order. `base` is the absolute path of their folder, or their URL. `names` are file names in it."""

    base: str
    names: list[str]

    def location(self, number: int) -> str:
        """The path or URL of a shard. Raises DataError for a name that may lead out of a URL."""
        name = self.names[number]
        return join_location(self.base, name) if self.is_remote else os.path.join(self.base, name)

    def path(self, number: int) -> Path | None:
        """The path of a local shard; None for a shard at a URL."""
        return None if self.is_remote else Path(self.location(number))

    @property
    def is_remote(self) -> bool:
        """True if the shards are at a URL."""
        return is_remote(self.base)

    def sizes(self) -> list[int]:
        """The sizes of local shards in bytes. Raises DataError for a shard that is missing or no file."""
        return [_size(Path(self.location(number))) for number in range(len(self.names))]


def find_shards(text: str) -> ShardList:
    """Find the shards that `text` names.

    Raises UserError for a location that is refused, for shards in several folders, and if no shard is named. Raises DataError for a
    folder or list that cannot be read.
    """
    check_location(text)
    with reading(text):
        is_folder = not is_remote(text) and Path(text).is_dir()
    if is_folder:
        locations = _tars_in(Path(text))
    elif text.endswith(".txt"):
        locations = _read_list(text)
    else:
        locations = _expanded(text)
    shards = _make_list(locations, text)
    if locations == [text] and not is_remote(text) and not Path(text).exists():
        raise DataError(f"{text} does not exist; give a folder of .tar files, a name such as 'train-{{0000..1023}}.tar', or a .txt list.")
    return shards


def _tars_in(folder: Path) -> list[str]:
    """List the shards of a folder. Raises DataError for compressed ones, which would otherwise be left out."""
    try:
        found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise read_error(folder, error, f"{folder} cannot be read ({error.strerror}); check its permissions.") from None
    if compressed := [name for name in found if name.endswith(COMPRESSED_SUFFIXES)]:
        raise DataError(f"{folder / compressed[0]} is compressed; unpack it to a plain .tar, or name the shards that are to be read.")
    names = [name for name in found if name.endswith(".tar")]
    if not names:
        raise DataError(f"{folder} holds no .tar file; give the folder of the shards. Folders of images are for: tdformer data prepare.")
    return [str(folder / name) for name in names]


def _read_list(text: str) -> list[str]:
    """Read a list with one path or URL per line. Relative paths start at the list's folder."""
    if is_remote(text):
        raise UserError(f"{text} is a list at a URL; download it first, and give the file.")
    try:
        lines = [line.strip() for line in Path(text).read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise read_error(text, error, f"{text} cannot be read ({reason}); give a text file with one path or URL per line.") from None
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise DataError(f"{text} lists no shard; expected one path or URL per line.")
    return [entry if is_remote(check_location(entry)) else str(Path(text).parent / entry) for entry in entries]


def _expanded(text: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(text))
    except ValueError:
        raise UserError(f"{text} has a brace without its other half; expected a name such as train-{{0000..1023}}.tar.") from None


def _make_list(locations: list[str], text: str) -> ShardList:
    locations = [location if is_remote(check_location(location)) else os.path.abspath(location) for location in locations]
    bases = list(dict.fromkeys(location.rpartition("/")[0] or "/" for location in locations))
    if len(bases) > 1:
        raise UserError(
            f"the shards of {text} lie apart, in {bases[0]} and in {bases[1]}; a set's shards lie in one folder or under one URL: "
            "put them together, or index each as a set of its own."
        )
    names = [location.rpartition("/")[2] for location in locations]
    for name in names:
        if not name:
            raise UserError(f"{text} names no shard, and a URL's folder cannot be listed; give its shards: train-{{0000..1023}}.tar.")
        if not is_valid_key(name) or name.startswith(".") or "\\" in name:
            raise UserError(f"{name!a} in {bases[0]} is no name for a shard; rename it.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{text} names {twice[0]} twice; name each shard once.")
    shards = ShardList(check_location(bases[0]), names)
    for number in range(len(names)):
        shards.location(number)  # raises for a name that a URL cannot have
    return shards


def _size(path: Path) -> int:
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"shard {path} is no file; name .tar files alone.")  # reading from a pipe would wait for ever
        return path.stat().st_size
    except OSError as error:
        state = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise read_error(f"shard {path}", error, f"shard {path} {state}; put it there, or name the shards that are.") from None
