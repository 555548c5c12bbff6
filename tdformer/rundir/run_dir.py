"""RunDir: the names of all files in a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDir:
    """Names the files of one run directory. It makes, reads and checks nothing.

    Every part of the program that reads or writes a run gets this type. Names inside `checkpoints` and `slurm` are those of
    tdformer.checkpoint and launch.slurm.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        """The resolved configuration. A folder with this file is a run directory."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row of training or validation metrics per line."""
        return self.path / "metrics.jsonl"

    @property
    def system_metrics(self) -> Path:
        """One row per line of how busy rank 0's machine was."""
        return self.path / "system_metrics.jsonl"

    @property
    def learning_curve(self) -> Path:
        return self.path / "learning_curve.png"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def latest(self) -> Path:
        """A file that holds the name of the newest checkpoint."""
        return self.checkpoints / "latest"

    @property
    def best(self) -> Path:
        """A file that holds the name of the checkpoint with the best validation top-1."""
        return self.checkpoints / "best"

    @property
    def last_saved(self) -> Path:
        """A file that holds the name of the checkpoint that was saved last. It is not in `checkpoints`, and shows when that is lost."""
        return self.path / "last_saved"

    @property
    def sessions(self) -> Path:
        """A folder with one file for each time that the run was started."""
        return self.path / "sessions"

    @property
    def mlflow_runs(self) -> Path:
        """The ids of this run's MLflow runs, by tracking URI."""
        return self.path / "mlflow.json"

    @property
    def lock(self) -> Path:
        """A file that says which process trains this run."""
        return self.path / "lock.json"

    @property
    def last_holder(self) -> Path:
        """A file that says which process held the lock last. It stays when the lock is removed."""
        return self.path / "last_holder"

    @property
    def stacks(self) -> Path:
        """A folder with stack traces of all ranks after a hang."""
        return self.path / "stacks"

    @property
    def traces(self) -> Path:
        """A folder with profiler traces."""
        return self.path / "traces"

    @property
    def non_finite(self) -> Path:
        """A folder with the sample keys of global batches whose loss or gradient was not finite."""
        return self.path / "non_finite"

    @property
    def slurm(self) -> Path:
        """A folder with the script, the log and the starts of this run's Slurm jobs."""
        return self.path / "slurm"

    @property
    def code(self) -> Path:
        """A copy of the code at submission, which this run's Slurm jobs run."""
        return self.path / "code"
