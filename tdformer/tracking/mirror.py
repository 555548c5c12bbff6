"""Mirror: sends to an MLflow run what it lacks of a run directory. Nothing is lost, and nothing is sent twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tdformer.config import RunConfig
from tdformer.config.yaml_io import load_config
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.sessions import Session
from tdformer.tracking import description, models
from tdformer.tracking.client import open_client
from tdformer.tracking.mlflow_run import UNKNOWN, find_or_make, last_session
from tdformer.tracking.spool import Point, Spool

METRICS_PER_BATCH, TEXTS_PER_BATCH = 1000, 100
"""Largest number of metrics, and of parameters or tags, that MLflow takes in one request."""
STATUS = {"running": "RUNNING", "finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
WILL_COME_BACK = "SCHEDULED"


class Mirror:
    """Mirrors one run directory at one tracking URI. After an error it asks again what MLflow has, and goes on from there.

    Points are in order, and MLflow takes a batch completely or not at all. Therefore it lacks, of each metric, the points after its last
    step. If an answer gets lost, a point is sent again with the same time, and MLflow keeps it once.
    """

    def __init__(self, run_dir: RunDir, uri: str) -> None:
        self.run_dir, self.uri = run_dir, uri
        self.run_id = ""
        self._client: Any = None
        self._last_steps: dict[str, int] = {}
        self._spools = [Spool(run_dir.metrics), Spool(run_dir.system_metrics)]
        self._files: dict[Path, int] = {}
        self._status = ""

    def update(self, on_batch: Callable[[int], object] = lambda _: None) -> int:
        """Send what MLflow lacks, and return how many points that were.

        `on_batch` gets the size of each batch of points. Raises whatever MLflow raises, and OSError.
        """
        try:
            session = last_session(self.run_dir)
            if self._client is None:
                self._connect(session)
            sent = sum(self._send_points(spool, on_batch) for spool in self._spools)
            self._send_files()
            self._send_status(session)
            if session.status == "finished":
                models.send(self._client, self.run_id, self.run_dir, load_config(self.run_dir.config))
            return sent
        except BaseException:
            self._client = None
            raise

    def _connect(self, session: Session) -> None:
        client, config = open_client(self.uri), load_config(self.run_dir.config)
        self.run_id = find_or_make(client, self.run_dir, self.uri, config)
        run = client.get_run(self.run_id)
        self._last_steps = {metric.key: metric.step for metric in run.data._metric_objs}  # run.data.metrics has no steps
        self._files, self._status = {}, ""
        for spool in self._spools:
            spool.rewind()
        self._client = client
        self._describe(run, config, session)

    def _describe(self, run: Any, config: RunConfig, session: Session) -> None:
        """Send parameters and tags, which do not change while a process trains."""
        from mlflow.entities import Param, RunTag

        params, tags = description.params(config), description.tags(config, self.run_dir, session)
        tags |= description.changed(config, run.data.params)
        for batch in _batches(_lacking(params, run.data.params, Param), TEXTS_PER_BATCH):
            self._client.log_batch(self.run_id, params=batch)
        stale = [name for name in run.data.tags if name.startswith(description.CHANGED) and name not in tags]
        for batch in _batches(_lacking(tags, run.data.tags, RunTag, change=True), TEXTS_PER_BATCH):
            self._client.log_batch(self.run_id, tags=batch)
        for name in stale:
            self._client.delete_tag(self.run_id, name)

    def _send_points(self, spool: Spool, on_batch: Callable[[int], object]) -> int:
        from mlflow.entities import Metric

        sent, last = 0, self._last_steps
        lacking = (point for point in spool.points() if point.step > last.get(point.name, -1))
        for batch in _batches(lacking, METRICS_PER_BATCH):
            self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in batch])
            sent += len(batch)
            on_batch(len(batch))
            _note_steps(last, batch)
        spool.advance()
        return sent

    def _send_files(self) -> None:
        for path in (self.run_dir.config, self.run_dir.learning_curve):
            if path.exists() and self._files.get(path) != (modified := path.stat().st_mtime_ns):
                self._client.log_artifact(self.run_id, str(path))
                self._files[path] = modified

    def _send_status(self, session: Session) -> None:
        status = WILL_COME_BACK if session.comes_back else STATUS.get(session.status, "KILLED")
        if status == self._status or session.status == UNKNOWN:
            return
        if status == "RUNNING":
            self._client.update_run(self.run_id, status)
        else:
            self._client.set_terminated(self.run_id, status, int(session.seen * 1000))
        self._status = status


def _note_steps(last: dict[str, int], points: Sequence[Point]) -> None:
    for point in points:
        last[point.name] = max(point.step, last.get(point.name, -1))


def _lacking(texts: dict[str, str], known: dict[str, str], entity: Callable[[str, str], Any], change: bool = False) -> list[Any]:
    return [entity(name, text) for name, text in texts.items() if name not in known or (change and known[name] != text)]


def _batches(items: Iterable[Any], size: int) -> Iterable[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
