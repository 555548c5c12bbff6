"""TODO."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from data_pipelines.errors import DataError


def spikingjelly_datasets(name: str) -> Any:
    """A module of spikingjelly.datasets, imported only now (it takes seconds) and without the package's own __init__.

    That one imports all its data sets, so torchaudio too, which refuses to run beside a torch for another minor version of
    CUDA (https://github.com/pytorch/audio/pull/4226). An empty package takes its place for as long as the import lasts.
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


def _integrated(dataset_class: Any, root: Path, time_steps: int, folders: Sequence[str], **arguments: bool) -> Any:
    """spikingjelly's data set of frames, made if it is not there yet. Its class folders must be those expected."""
    if time_steps < 1:
        raise DataError(f"{time_steps} time steps cannot hold the events of {root}; give 1 or more.")
    if unfinished := sorted(root.glob("*.building")):
        raise DataError(f"{unfinished[0]}: the preparation was interrupted, or still runs; remove everything in {root} but download/.")
    if not (root / "events_np").exists():
        _check_downloads(root / "download", dataset_class.resource_url_md5())
    try:
        dataset = dataset_class(str(root), data_type="frame", frames_number=time_steps, split_by="number", **arguments)
    except Exception as error:  # its readers check little, and a damaged recording may fail anywhere in them
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{root} cannot be prepared ({reason}); remove everything in it but download/ and prepare again.") from None
    if list(dataset.classes) != list(folders):
        raise DataError(f"{dataset.root} holds the classes {dataset.classes}; expected {folders}: remove all in {root} but download/.")
    return dataset


def _check_downloads(folder: Path, published: Sequence[tuple[str, str, str]]) -> None:
    """published: name, address and MD5 of each file.

    spikingjelly would delete a file with another MD5, try to download what is missing, and unpack whatever else lies there.
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
