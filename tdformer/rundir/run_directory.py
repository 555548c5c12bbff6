"""Where a run keeps what it makes: one folder, made once, found again by a resume."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.storage.files import replace_file
from tdformer.config import RunConfig
from tdformer.config.yaml_io import differences, dump_config, is_within, load_config
from tdformer.distributed.launch_environment import REQUEUES
from tdformer.rundir import run_lock
from tdformer.rundir.lock_file import CLOCK_NAME
from tdformer.rundir.lock_file import NAME as LOCK_NAME

CONFIG_FILE, METRICS_FILE, CURVE_FILE = "config.yaml", "metrics.jsonl", "learning_curve.png"
JOB_FOLDER = "slurm"
"""Where launch.slurm keeps script, logs and attempts."""

CHANGEABLE = (
    "checkpoint",
    "tracking",
    "preemption",
    "watchdog",
    "data.workers",
    "data.train",
    "data.val",
    "data.on_bad_sample",
    "data.max_bad_samples",
    "training.eval_batch",
    "training.zero_stage",
    "training.offload",
    "training.on_non_finite",
    "training.max_non_finite",
    "training.log_every",
    "training.recompute",
    "profiling",
    "output",
)
"""Keys and sections that may differ on a resume: they do not change what is computed."""


def new(config: RunConfig) -> Path:
    """Make the next free folder `<output>/<name>-001`, …"""
    for path in free(config):
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue  # another run took it at the same moment
        except OSError as error:
            raise UserError(f"output folder {config.output} cannot be made ({error.strerror}); choose another output.") from None
    raise AssertionError("numbers do not end")


def free(config: RunConfig) -> Iterator[Path]:
    """The folders that are not taken yet, in their order."""
    taken = [entry.name.removeprefix(f"{config.name}-") for entry in config.output.glob(f"{config.name}-*")]
    first = max((int(text) for text in taken if text.isdigit()), default=0) + 1
    yield from (config.output / f"{config.name}-{number:03d}" for number in itertools.count(first))


def config_of(path: Path) -> Path:
    """The configuration of a run directory."""
    if (path / CONFIG_FILE).exists():
        return path / CONFIG_FILE
    raise UserError(f"{path} is not a run directory: it has no {CONFIG_FILE}; give one, or a YAML file to start from.")


def check(path: Path, config: RunConfig) -> None:
    """Raise UserError unless `path` is free for this run, or its directory already: only harmless keys may have changed since."""
    saved = path / CONFIG_FILE
    if saved.exists():
        changed = [line for line in differences(load_config(saved), config) if not is_within(line.partition(":")[0], CHANGEABLE)]
        if changed:
            raise UserError(
                f"{path} holds a run of another configuration; resume it as it was (tdformer train {path}) or choose another "
                f"--run-dir. Different are: {'; '.join(changed)}"
            )
    elif _has_content(path):
        raise UserError(f"{path} is not empty and not a run directory; choose another --run-dir.")


def make(path: Path) -> None:
    """Make the folder, unless it is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run directory {path} cannot be made ({error.strerror}); choose another --run-dir.") from None


def claim(path: Path, config: RunConfig) -> None:
    """Make `path` the directory of this run."""
    make(path)
    check(path, config)
    replace_file(path / CONFIG_FILE, lambda partial: partial.write_text(dump_config(config)))


@contextmanager
def held(path: Path, config: RunConfig, lost: Callable[[str], object]) -> Iterator[None]:
    """Claim the directory, and keep other runs out of it. `lost`: see run_lock.held."""
    make(path)
    check(path, config)
    with run_lock.held(path, lost):
        claim(path, config)
        yield


def discard_if_unused(path: Path) -> None:
    """Remove a run directory in which nothing was done yet, after a start that was refused."""
    if path.is_dir() and {entry.name for entry in path.iterdir()} <= {CONFIG_FILE}:
        (path / CONFIG_FILE).unlink(missing_ok=True)
        path.rmdir()


def how_to_go_on(path: Path, world_size: int) -> str:
    """One sentence for a run that ended before its time."""
    latest = path / "checkpoints" / "latest"
    if not latest.exists():
        return f"No checkpoint was reached; {next_step(path, world_size, 'start again')}"
    return f"The last whole checkpoint is {latest.read_text().strip()}; {next_step(path, world_size)}"


def next_step(path: Path, world_size: int, verb: str = "go on") -> str:
    """The command that goes on with a run; of a job that Slurm brings back, that there is nothing to do."""
    if os.environ.get(REQUEUES):
        return "its job is put back into the queue"
    return f"{verb} with: tdformer train {path}" + (f" --processes {world_size}" if world_size > 1 else "")


def _has_content(path: Path) -> bool:
    """Besides what a start brings: the lock of a run that begins at the same moment, a configuration that one was killed while it
    wrote, and what launch.slurm keeps of its jobs."""
    return path.is_dir() and not all(
        entry.name.startswith((LOCK_NAME, CLOCK_NAME)) or entry.match(f".*-{CONFIG_FILE}") or entry.name == JOB_FOLDER
        for entry in path.iterdir()
    )
