"""Reads the tensors of a checkpoint that another program wrote. Nothing that the file brings is executed."""

from __future__ import annotations

import argparse
import pathlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.storage.passing_trouble import is_passing, unavailable
from tdformer.models.weights import WeightsError, check_sound, printable, read_safetensors

USUAL_KEYS = ("model", "state_dict")
"""The names under which training programs keep the weights, the first one before the second."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before each name."""
EXPECTED = 'expected is {"model": {name: tensor, …}} or the inner part itself'

CLASSES = {
    np._core.multiarray.scalar: ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),  # type: ignore[attr-defined]
    np._core.multiarray._reconstruct: ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),  # type: ignore[attr-defined]
    pathlib.PurePosixPath: ("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath"),
    pathlib.PureWindowsPath: ("pathlib.WindowsPath", "pathlib.PureWindowsPath", "pathlib._local.WindowsPath"),
}
"""What stands for names in a file that other versions of Python and numpy, or another system, wrote."""
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *((made, name) for made, names in CLASSES.items() for name in names),
]
"""What torch may make besides tensors and plain values: the options, metrics and paths that many published files hold."""


@dataclass(frozen=True)
class PublishedTensors:
    """The tensors of a published file, by their names without the prefixes of training programs."""

    tensors: dict[str, torch.Tensor]
    key: str | None
    """The entry of the file that they were in. None if the file holds nothing else."""
    other_keys: list[str]
    """Entries of the file that hold tensors by name too, such as a moving average."""


def read_tensors(path: Path, key: str | None = None) -> PublishedTensors:
    """Read a file of safetensors, or a torch file of {"model": tensors}, {"state_dict": tensors} or the tensors themselves.

    key: the entry to read, if the file has several. Raises WeightsError for anything else, and UnavailableError for a file that cannot be
    read now.
    """
    content = _read_file(path)
    key = _entry(path, content, key)
    found = content if key is None else content[key]
    odd = next((name for name, value in found.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))), None)
    if not found or odd is not None:
        what = f"{odd!r}, a {type(found[odd]).__name__}" if found else "nothing"
        raise WeightsError(f"{path} is no checkpoint of plain tensors: it holds {what}; {EXPECTED}.")
    tensors = _without_prefixes(path, found)
    check_sound(tensors, path)
    return PublishedTensors(tensors, key, [other for other in _states(content) if other != key])


def _entry(path: Path, content: Mapping[Any, Any], wanted: str | None) -> str | None:
    """Return the entry of the file that holds the weights, or None if the file itself is them."""
    states = _states(content)
    if wanted is not None:
        if wanted not in states:
            known = f"it has them under: {', '.join(states)}" if states else "give no key, its tensors have no name above them"
            raise WeightsError(f"{path} has no tensors under {printable(wanted)!r}; {known}.")
        return wanted
    candidates = [key for key in USUAL_KEYS if isinstance(content.get(key), dict)] or states
    if len(candidates) > 1 and candidates is states:
        raise WeightsError(f"{path} holds several networks: {', '.join(states)}; choose one with --key.")
    return candidates[0] if candidates else None


def _states(content: Mapping[Any, Any]) -> list[str]:
    """Return the names of the entries that are tensors by name."""
    return [key for key, value in content.items() if isinstance(key, str) and key.isprintable() and _is_state(value)]


def _is_state(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(part, torch.Tensor) for part in value.values())


def _without_prefixes(path: Path, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    for name, tensor in found.items():
        bare = re.sub(f"^({'|'.join(map(re.escape, PREFIXES))})+", "", name)
        if bare in tensors:
            both = f"as {printable(names[bare])} and as {printable(name)}"
            raise WeightsError(f"{path} holds {printable(bare)} twice, {both}; remove one of them.")
        tensors[bare], names[bare] = tensor, name
    return tensors


def _read_file(path: Path) -> dict[Any, Any]:
    """Read a checkpoint in the format that its first bytes show, whatever the name of the file."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        if is_passing(error):
            raise unavailable(path, error) from None
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from None
    if start[8:9] == b"{":
        return dict(read_safetensors(path))
    if not start.startswith((b"PK", b"\x80")):
        raise WeightsError(f"{path} is no checkpoint (neither torch's format nor safetensors; it starts with {start!r}).")
    return _read_torch_file(path)


def _read_torch_file(path: Path) -> dict[Any, Any]:
    """Read a torch file of tensors, plain Python values and what is HARMLESS."""
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        if is_passing(error):
            raise unavailable(path, error) from None
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise WeightsError(
                f"{path} is a pickle of more than plain tensors (it wants to load {refused[1]}), and is not opened; "
                f"where you trust it, save its tensors alone as safetensors and import those."
            ) from None
        raise WeightsError(
            f"{path} cannot be read as tensors: it is damaged, or a pickle of more than plain tensors ({type(error).__name__}), "
            f"and is not opened."
        ) from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; {EXPECTED}.")
    return content
