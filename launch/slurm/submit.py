"""Submits a configuration as a job: run directory, copy of the code, script, sbatch. A refused job removes the folders that it made."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.formats.manifest import MANIFEST
from data_pipelines.formats.manifest_reader import read_manifest
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.locations import is_remote
from launch.output.tables import show_notes
from launch.slurm import job_record, scheduler
from launch.slurm.cluster_config import ClusterConfig, seconds_of
from launch.slurm.script import Job, render
from launch.slurm.snapshot import snapshot
from launch.slurm.sweep import check_different, combinations
from tdformer.config import RunConfig
from tdformer.config.short_runs import notes_on_length
from tdformer.config.yaml_io import load_config
from tdformer.reference_curves.reference import find_reference
from tdformer.rundir import creation, run_lock
from tdformer.rundir.run_dir import RunDir
from tdformer.tracking.probe import probe

SCRIPT = "train.sbatch"
ENDED = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "BOOT_FAIL", "NODE_FAIL", None)
"""The states of a job that will not write any more. None: Slurm does not know the job."""


@dataclass(frozen=True)
class Size:
    """The size of a job: nodes, processes and GPUs per node, and how many jobs of an array run at the same time."""

    nodes: int
    processes_per_node: int
    gpus_per_node: int
    at_once: int | None = None


@dataclass(frozen=True)
class Submitted:
    """A job in the queue. After a dry run, the job that would be submitted."""

    job: Job
    number: str | None
    """The number of the job. None after a dry run."""
    text: str
    """The text of the script."""
    changes: Sequence[Sequence[str]]
    """The overrides that each run of a sweep has, in the order of the runs."""

    @property
    def log(self) -> Path:
        """The path of the log, of the first job for an array."""
        number = self.number or "JOB"
        return self.job.log.with_name(self.job.log.name.replace("%j", number).replace("%A", number).replace("%a", "0"))


def submit(
    target: Path,
    overrides: Sequence[str],
    sweeps: Sequence[str],
    path: Path | None,
    size: Size,
    cluster: ClusterConfig,
    dry_run: bool,
    after: str | None = None,
) -> Submitted:
    """Submit one run, or one run for each combination of the values of `sweeps` as an array.

    target: a YAML file starts a new run, a run directory continues the run in it.
    sweeps: texts of the form KEY=[VALUE, …]. after: a job that must be finished before; if it fails, this one is cancelled.
    Raises UserError; if Slurm refuses the job, with Slurm's own message.
    """
    if target.is_dir():
        target, path = creation.config_of(target), path or target
    run_dir = RunDir(path) if path else None
    changes = list(combinations(sweeps, overrides))
    if run_dir is not None and len(changes) > 1:
        raise UserError(
            f"{run_dir} is one run, and --sweep starts {len(changes)} new ones; give a YAML file without --run-dir, or no --sweep."
        )
    if size.at_once is not None and not sweeps:
        raise UserError("--at-once is for the jobs of a --sweep; leave it out, or give a --sweep.")
    wanted = [load_config(target, [*overrides, *change]) for change in changes]
    check_different(wanted, changes)
    for config in wanted:
        check(config, size, cluster)
    first = wanted[0]
    if not dry_run:
        scheduler.check_installed()
    if run_dir is not None:
        _check_free(run_dir, first)
    if away := probe(first.tracking.uri, first.tracking.experiment):
        print(f"warning: {away}", file=sys.stderr)
    show_notes(list(dict.fromkeys(note for config in wanted for note in notes_on_length(config, _samples(config)))))
    with _removed_on_error(dry_run) as made:
        sweep = made.next_free(first.model_copy(update={"name": f"{first.name}-sweep"})) if len(changes) > 1 else None
        into = [f"output={sweep}"] if sweep else []
        kept = [override for override in overrides if not (into and override.startswith("output="))]
        configs = [load_config(target, [*kept, *change, *into]) for change in changes]
        runs = [run_dir or made.next_free(config) for config in configs]
        if run_dir is not None and not run_dir.path.exists():
            made.folders.append(run_dir)
        job = _job(sweep or runs[0], runs, size)
        text = render(job, cluster)
        if dry_run:
            return Submitted(job, None, text, changes)
        for run, config in zip(runs, configs, strict=True):
            creation.claim(run, config)
            snapshot(run.code)
        (sweep or runs[0]).slurm.mkdir(exist_ok=True)
        replace_file(job.script, lambda partial: partial.write_text(text, encoding="utf-8", errors="surrogateescape"))
        number = scheduler.sbatch(job.script, after)
    for index, run in enumerate(runs):
        job_record.write(run, f"{number}_{index}" if job.is_array else number, job.script)
    return Submitted(job, number, text, changes)


def check(config: RunConfig, size: Size, cluster: ClusterConfig) -> None:
    """Raise UserError if a job of this size on this cluster could not train a configuration."""
    config.training.accumulation(size.nodes * size.processes_per_node)
    if config.training.reference:
        find_reference(config.training.reference)
    if cluster.warning_signal not in config.preemption.signals:
        raise UserError(
            f"the job would be told to stop by {cluster.warning_signal}, which is not one of preemption.signals "
            f"({', '.join(config.preemption.signals)}); change one of them."
        )
    if cluster.time is not None and (seconds_of(cluster.time) or 0) <= cluster.warning_s:
        raise UserError(
            f"the job has time {cluster.time}, and is told to stop {cluster.warning_s} s before its end, which is at once; give it more "
            f"time, or lower warning_s in the cluster file."
        )


def _samples(config: RunConfig) -> int | None:
    """Return the size of the training set as far as a login node knows it."""
    if is_remote(config.data.train) or not (Path(config.data.train) / MANIFEST).is_file():
        return config.data.train_samples
    return read_manifest(Path(config.data.train)).samples


def _check_free(run_dir: RunDir, config: RunConfig) -> None:
    creation.check_fits(run_dir, config)
    for number in job_record.jobs_of(run_dir):
        if shutil.which("squeue") and (state := scheduler.state(number)) not in ENDED:
            raise UserError(f"job {number} ({state}) has {run_dir}; it goes on by itself. To end it first: scancel {number}")
    run_lock.check_free(run_dir)


def _job(folder: RunDir, runs: Sequence[RunDir], size: Size) -> Job:
    script = (folder.slurm / SCRIPT).absolute()
    here, absolute = Path.cwd(), [run.path.absolute() for run in runs]
    return Job(folder.name, absolute, script, here, sys.executable, size.nodes, size.processes_per_node, size.gpus_per_node, size.at_once)


class _NewFolders:
    """Makes the folders of a job. In a dry run it only names them."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.folders: list[RunDir] = []
        self._free: dict[tuple[Path, str], Iterator[RunDir]] = {}

    def next_free(self, config: RunConfig) -> RunDir:
        """Return the next free run directory, made unless this is a dry run."""
        if self.dry_run:
            return next(self._free.setdefault((config.output, config.name), creation.free_names(config)))
        self.folders.append(creation.create_next(config))
        return self.folders[-1]


@contextmanager
def _removed_on_error(dry_run: bool) -> Iterator[_NewFolders]:
    """Yield new folders, and remove them if the job is refused."""
    made = _NewFolders(dry_run)
    try:
        yield made
    except BaseException:
        for run_dir in made.folders:
            shutil.rmtree(run_dir.path, ignore_errors=True)
        raise
