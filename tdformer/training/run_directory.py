"""Where a run keeps what it makes: one folder, made once, found again by a resume."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.files import replace_file
from tdformer.config import RunConfig
from tdformer.config_io import differences, dump_config, load_config

CONFIG_FILE, METRICS_FILE, CURVE_FILE = "config.yaml", "metrics.jsonl", "learning_curve.png"

CHANGEABLE = (
    "checkpoint.",
    "tracking.",
    "data.workers",
    "data.train",
    "data.val",
    "data.on_bad_sample",
    "data.max_bad_samples",
    "training.eval_batch",
    "training.log_every",
    "training.recompute",
    "output",
)
"""Keys that may differ on a resume: they do not change what is computed."""


def new(config: RunConfig) -> Path:
    """Make the next free folder `<output>/<name>-001`, …"""
    try:
        config.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {config.output} cannot be made ({error.strerror}); choose another output.") from None
    taken = [entry.name.removeprefix(f"{config.name}-") for entry in config.output.glob(f"{config.name}-*")]
    number = max((int(text) for text in taken if text.isdigit()), default=0)
    while True:
        number += 1
        try:
            path = config.output / f"{config.name}-{number:03d}"
            path.mkdir()
            return path
        except FileExistsError:
            continue  # another run took it at the same moment


def claim(path: Path, config: RunConfig) -> None:
    """Make `path` the directory of this run, or check that it already is: only harmless keys may have changed since."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run directory {path} cannot be made ({error.strerror}); choose another --run-dir.") from None
    saved = path / CONFIG_FILE
    if saved.exists():
        changed = [line for line in differences(load_config(saved), config) if not line.startswith(CHANGEABLE)]
        if changed:
            raise UserError(
                f"{path} holds a run of another configuration; resume it as it was (tdformer train {path}) or choose another "
                f"--run-dir. Different are: {'; '.join(changed)}"
            )
    elif any(path.iterdir()):
        raise UserError(f"{path} is not empty and not a run directory; choose another --run-dir.")
    replace_file(saved, lambda partial: partial.write_text(dump_config(config)))


def discard_if_unused(path: Path) -> None:
    """Remove a run directory in which nothing was done yet, after a start that was refused."""
    if [entry.name for entry in path.iterdir()] == [CONFIG_FILE]:
        (path / CONFIG_FILE).unlink()
        path.rmdir()
