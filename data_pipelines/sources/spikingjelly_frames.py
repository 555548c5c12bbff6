"""Integrates published event recordings into frames, with spikingjelly's own readers.

spikingjelly expects the published files in `download/` below the root. It writes three folders beside it: `extract/` holds the
unpacked recordings, `events_np/` the events, and `frames_number_<T>_split_by_number/` the frames. Each frame of a sample holds an
equal number of its events, and the last frame also the remainder. The readers unpickle nothing, since NumPy refuses objects.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.storage.passing_trouble import is_passing, unavailable


def import_spikingjelly_module(name: str) -> Any:
    """Import a module of spikingjelly.datasets without the package's own __init__.

    The __init__ imports all data sets, and so torchaudio. torchaudio refuses to run beside a torch for another minor version of CUDA
    (https://github.com/pytorch/audio/pull/4226). So an empty package takes its place during the import. The import takes seconds,
    so it happens only when it is needed.
    """
    import spikingjelly

    package = "spikingjelly.datasets"
    empty = ModuleType(package)
    empty.__path__ = [str(Path(spikingjelly.__path__[0]) / "datasets")]
    sys.modules.setdefault(package, empty)
    try:
        return importlib.import_module(f"{package}.{name}")
    finally:
        if sys.modules[package] is empty:
            del sys.modules[package]


def integrate_frames(dataset_class: Any, root: Path, time_steps: int, folders: Sequence[str], **arguments: bool) -> Any:
    """Open spikingjelly's data set of frames, and integrate it first if needed.

    folders: the class folders that it must have. Raises DataError for missing or damaged downloads, an interrupted integration, and
    other class folders.
    """
    if time_steps < 1:
        raise DataError(f"{time_steps} time steps cannot hold the events of {root}; give 1 or more.")
    if unfinished := sorted(root.glob("*.building")):
        raise DataError(f"{unfinished[0]}: the preparation was interrupted, or still runs; remove everything in {root} but download/.")
    if not (root / "events_np").exists():
        _check_downloads(root / "download", dataset_class.resource_url_md5())
    try:
        dataset = dataset_class(str(root), data_type="frame", frames_number=time_steps, split_by="number", **arguments)
    except Exception as error:  # spikingjelly's readers check little, so a damaged recording may raise anything
        if is_passing(error):
            raise unavailable(root, error) from None
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{root} cannot be prepared ({reason}); remove everything in it but download/ and prepare again.") from None
    if list(dataset.classes) != list(folders):
        raise DataError(f"{dataset.root} holds the classes {dataset.classes}; expected {folders}: remove all in {root} but download/.")
    return dataset


def _check_downloads(folder: Path, published: Sequence[tuple[str, str, str]]) -> None:
    """Check the downloads before spikingjelly sees them. published: name, address and MD5 of each file.

    spikingjelly would delete a file with another MD5, download missing files, and unpack unknown ones.
    """
    if missing := [f"{name} from {address}" for name, address, _ in published if not (folder / name).is_file()]:
        raise DataError(f"{folder} lacks {len(missing)} of the published files; download {', '.join(missing)}.")
    if strange := sorted({path.name for path in folder.iterdir()} - {name for name, _, _ in published}):
        raise DataError(f"{folder / strange[0]} is none of the published files; remove it.")
    if damaged := [name for name, _, md5 in published if _md5(folder / name) != md5]:
        raise DataError(f"{folder / damaged[0]} is not as published (its MD5 differs); remove it and download it again.")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
