"""Makes a run directory, checks that it fits a configuration, and holds it for one process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.passing_trouble import is_passing, reading_own, unavailable
from tdformer.config import RunConfig
from tdformer.config.dotted_keys import differences, is_within
from tdformer.config.yaml_io import dump_config, load_config
from tdformer.rundir import run_lock
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.run_lock import HeldLock

CHANGEABLE = (
    "checkpoint",
    "tracking",
    "preemption",
    "watchdog",
    "data.workers",
    "data.train",
    "data.val",
    "data.on_bad_sample",
    "data.patience_minutes",
    "data.max_bad_samples",
    "training.eval_batch",
    "training.zero_stage",
    "training.offload",
    "training.on_non_finite",
    "training.max_non_finite",
    "training.log_every",
    "training.reference",
    "training.recompute",
    "profiling",
    "output",
)
"""Keys and sections that may differ on a resume. They change no result, except how the run reacts to bad samples and bad numbers."""


def create_next(config: RunConfig) -> RunDir:
    """Make the next free folder `<output>/<name>-001`, … Raises UserError if the output folder cannot be written."""
    for run_dir in free_names(config):
        try:
            run_dir.path.mkdir(parents=True)
            return run_dir
        except FileExistsError:
            continue  # another run took the name at the same moment
        except OSError as error:
            if is_passing(error):
                raise unavailable(f"output folder {config.output}", error) from None
            raise UserError(f"output folder {config.output} cannot be made ({error.strerror}); choose another output.") from None
    raise AssertionError("numbers do not end")


def free_names(config: RunConfig) -> Iterator[RunDir]:
    """Run directories with names that no folder has yet, in the order of their numbers."""
    taken = [entry.name.removeprefix(f"{config.name}-") for entry in config.output.glob(f"{config.name}-*")]
    first = max((int(text) for text in taken if text.isdigit()), default=0) + 1
    yield from (RunDir(config.output / f"{config.name}-{number:03d}") for number in itertools.count(first))


def config_of(path: Path) -> Path:
    """Return the configuration file of a run directory. Raises UserError if `path` is no run directory."""
    config = RunDir(path).config
    with reading_own(config):
        is_there, saved = config.exists(), _newest_saved_config(RunDir(path))
    if saved is None:
        if is_there:
            return config
        raise UserError(f"{path} is not a run directory: it has no {config.name}; give one, or a YAML file to start from.")
    try:
        if not is_there:
            raise UserError(f"{config} is missing.")
        load_config(config)
        return config
    except UnavailableError:
        raise
    except UserError as error:
        raise UserError(f"{error} A checkpoint has a copy, which brings it back: cp {saved.path} {config}") from None


def check_fits(run_dir: RunDir, config: RunConfig) -> None:
    """Raise UserError unless the folder is free for this run, or holds this run already with only CHANGEABLE keys changed.

    The configuration is compared with the run's own, and with that of its newest checkpoint: the run's own may have been edited.
    """
    with reading_own(run_dir.config):
        has_config = run_dir.config.exists()
    if not has_config:
        if _has_content(run_dir):
            raise UserError(f"{run_dir} is not empty and not a run directory; choose another --run-dir.")
        return
    own, saved = load_config(run_dir.config), _newest_saved_config(run_dir)
    if saved and fixed_differences(saved.config, config) and (edited := fixed_differences(saved.config, own)):
        raise UserError(
            f"{run_dir.config} was changed after the run had begun; restore it (cp {saved.path} {run_dir.config}), or start a new run "
            f"with it: tdformer train {run_dir.config}. Different are: {'; '.join(edited)}"
        )
    if changed := fixed_differences(saved.config if saved else own, config):
        raise UserError(
            f"{run_dir} holds a run of another configuration; resume it as it was (tdformer train {run_dir}) or choose another "
            f"--run-dir. Different are: {'; '.join(changed)}"
        )


def fixed_differences(saved: RunConfig, config: RunConfig) -> list[str]:
    """Return one line for each key that differs and may not."""
    return [line for line in differences(saved, config) if not is_within(line.partition(":")[0], CHANGEABLE)]


class _Saved(NamedTuple):
    path: Path
    config: RunConfig


def _newest_saved_config(run_dir: RunDir) -> _Saved | None:
    """Return the configuration in the newest checkpoint that has a whole one. Raises UnavailableError if one cannot be read now."""
    for path in sorted(run_dir.checkpoints.glob(f"step-*/{run_dir.config.name}"), reverse=True):
        try:
            return _Saved(path, load_config(path))
        except UnavailableError:
            raise
        except UserError:
            continue  # a damaged checkpoint is told when it would be loaded
    return None


def make_folder(run_dir: RunDir) -> None:
    """Make the folder, unless it is there. Raises UserError if it cannot be made."""
    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_passing(error):
            raise unavailable(f"run directory {run_dir}", error) from None
        raise UserError(f"run directory {run_dir} cannot be made ({error.strerror}); choose another --run-dir.") from None


def claim(run_dir: RunDir, config: RunConfig) -> None:
    """Make the folder the directory of this run: check that it fits, and write the configuration into it."""
    make_folder(run_dir)
    check_fits(run_dir, config)
    replace_file(run_dir.config, lambda partial: partial.write_text(dump_config(config)))


@contextmanager
def held(run_dir: RunDir, config: RunConfig, on_lost: Callable[[str], object]) -> Iterator[HeldLock]:
    """Claim the folder for this run, and keep other runs out of it inside the context. run_lock.held says when it calls `on_lost`."""
    make_folder(run_dir)
    check_fits(run_dir, config)
    with run_lock.held(run_dir, on_lost) as lock:
        claim(run_dir, config)
        yield lock


def discard_if_unused(run_dir: RunDir) -> None:
    """Remove a run directory that holds what a start makes at most, after a start that was refused."""
    made = (run_dir.config, run_dir.last_holder)
    if run_dir.path.is_dir() and {entry.name for entry in run_dir.path.iterdir()} <= {path.name for path in made}:
        for path in made:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # an empty folder may be where a disk is mounted
            run_dir.path.rmdir()


def _has_content(run_dir: RunDir) -> bool:
    """Tell whether the folder holds more than a start brings along.

    A start brings the lock of a run that begins at the same moment, a configuration whose writing was cut off, and the files of
    launch.slurm.
    """
    return run_dir.path.is_dir() and not all(
        entry.name.startswith(run_dir.lock.name)
        or entry.match(f".*-{run_dir.config.name}")
        or entry.name in (run_dir.slurm.name, run_dir.last_holder.name)
        for entry in run_dir.path.iterdir()
    )
