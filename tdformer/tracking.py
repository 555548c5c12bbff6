"""MLflow, on rank 0. The run is always closed with the status that it deserves, and no point is written twice."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from data_pipelines.errors import UserError
from tdformer.config import RunConfig
from tdformer.config_io import flatten

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
RUN_ID_FILE = "mlflow_run_id"
DIRECTORY_TAG = "tdformer.run_dir"
SQLITE = "sqlite:///"


class Tracker:
    """One MLflow run. As a context manager it ends the run: FAILED after an exception, else what `end` was told, else FINISHED.

    Raises UserError at the start if MLflow cannot be used. Later it is never in the way: that something cannot be
    written is said once, and training goes on; metrics.jsonl has every point all the same.
    """

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        mlflow = _import_mlflow()
        self._uri, self._metric = config.tracking.uri, mlflow.entities.Metric
        self._status, self._warned = FINISHED, False
        self._last_steps: dict[str, int] = {}
        try:
            _check_sqlite(self._uri)
            self._client = mlflow.MlflowClient(self._uri)
            with suppress(OSError):  # MLflow makes this folder in the current one for its default experiment, which is not used
                Path("mlruns").rmdir()
            self.run_id = read_run_id(run_dir) or self._create(config, run_dir)
            self._client.update_run(self.run_id, "RUNNING")
            self._monitor = self._watch_system(mlflow) if config.tracking.system_metrics else None
        except Exception as error:  # MLflow passes on whatever its database or server raises
            raise UserError(f"MLflow at {self._uri} cannot be used ({_first_line(error)}); mend tracking.uri or its server.") from error

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one point of each metric, unless the run had it before this resume: what a resume replays is equal."""
        now = int(time.time() * 1000)
        with self._never_in_the_way():
            points = [self._metric(name, value, now, step) for name, value in metrics.items() if step > self._last_step(name)]
            self._client.log_batch(self.run_id, metrics=points)

    def log_file(self, path: Path) -> None:
        with self._never_in_the_way():
            self._client.log_artifact(self.run_id, str(path))

    def end(self, status: str) -> None:
        """How the run is closed when the context is left without an exception."""
        self._status = status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._never_in_the_way():
            if self._monitor is not None:
                self._monitor.finish()
            self._client.set_terminated(self.run_id, self._status if kind is None else FAILED)

    @contextmanager
    def _never_in_the_way(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._warned:
                print(f"warning: MLflow at {self._uri} cannot be written ({_first_line(error)}); training goes on.", file=sys.stderr)
            self._warned = True

    def _create(self, config: RunConfig, run_dir: Path) -> str:
        """A new MLflow run, remembered in the run directory at once: a resume finds it even if no checkpoint was reached."""
        from mlflow.entities import Param

        experiment, directory = self._experiment(config.tracking.experiment), str(run_dir.resolve())
        run_id = self._unnoted(experiment, directory)
        if run_id is None:
            run_id = self._client.create_run(experiment, run_name=run_dir.name, tags={DIRECTORY_TAG: directory}).info.run_id
        (run_dir / RUN_ID_FILE).write_text(run_id + "\n")
        params = [Param(name, str(value)) for name, value in flatten(config).items()]
        self._client.log_batch(run_id, params=params)
        return run_id

    def _unnoted(self, experiment: str, directory: str) -> str | None:
        """The run that a process made for this directory and was killed before it noted that: open, and nothing logged."""
        runs = self._client.search_runs([experiment], "attributes.status = 'RUNNING'")
        mine = (run for run in runs if run.data.tags.get(DIRECTORY_TAG) == directory and not run.data.params)
        return next((run.info.run_id for run in mine), None)

    def _experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        return experiment.experiment_id if experiment else self._client.create_experiment(name, _artifacts_beside_sqlite(self._uri))

    def _last_step(self, name: str) -> int:
        """Of the points that were in MLflow when this process started."""
        if name not in self._last_steps:
            history = self._client.get_metric_history(self.run_id, name)
            self._last_steps[name] = max((point.step for point in history), default=-1)
        return self._last_steps[name]

    def _watch_system(self, mlflow: Any) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        mlflow.set_tracking_uri(self._uri)  # the monitor knows no other way
        monitor = SystemMetricsMonitor(self.run_id, resume_logging=True)
        monitor.start()
        return monitor


def read_run_id(run_dir: Path) -> str | None:
    """The MLflow run of a run directory, once it has one."""
    path = run_dir / RUN_ID_FILE
    return (path.read_text().strip() or None) if path.exists() else None


def close_if_running(uri: str, run_dir: Path) -> None:
    """Mark the run of a run directory FAILED if its process died without being able to."""
    if (run_id := read_run_id(run_dir)) is None:
        return
    client = _import_mlflow().MlflowClient(uri)
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, FAILED)


def _import_mlflow() -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow's own defaults try an unreachable server for many minutes, in the way of training.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import mlflow

    return mlflow


def _check_sqlite(uri: str) -> None:
    """Make the folder of a sqlite file, and see that the file can be opened."""
    if uri.startswith(SQLITE):
        path = Path(uri.removeprefix(SQLITE))
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as database:  # fails at once where MLflow would try again for minutes
            database.execute("PRAGMA schema_version")


def _artifacts_beside_sqlite(uri: str) -> str | None:
    """Where an experiment's files go: beside the database, not in whatever folder the command was called in. A server knows itself."""
    return (Path(uri.removeprefix(SQLITE)).parent / "mlflow_artifacts").resolve().as_uri() if uri.startswith(SQLITE) else None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
