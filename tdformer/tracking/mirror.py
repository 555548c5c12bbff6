"""An MLflow run, made equal to a run directory as often as one likes: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tdformer import sessions
from tdformer.config import RunConfig
from tdformer.config_io import load_config
from tdformer.sessions import Session
from tdformer.tracking import describing, models
from tdformer.tracking.client import RefusedError, artifacts_beside_sqlite, open_client
from tdformer.tracking.run_ids import note_run_id, read_run_ids
from tdformer.tracking.spool import Point, Spool
from tdformer.training.run_directory import CONFIG_FILE, CURVE_FILE, METRICS_FILE

SYSTEM_METRICS_FILE = "system_metrics.jsonl"
METRICS_PER_BATCH, TEXTS_PER_BATCH = 1000, 100
"""MLflow takes no more at once."""
STATUS = {"running": "RUNNING", "finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
WILL_COME_BACK = "SCHEDULED"


class Mirror:
    """Of one run directory at one tracking URI. After an error it finds out anew what MLflow has, and goes on from there.

    Points are in order, and MLflow takes a batch whole or not at all: of each metric, it lacks those after its last step. A point that
    is sent again after all, because an answer was lost, has its time with it, and MLflow knows it by that.
    """

    def __init__(self, run_dir: Path, uri: str) -> None:
        self.run_dir, self.uri = run_dir, uri
        self.run_id = ""
        self._client: Any = None
        self._last_steps: dict[str, int] = {}
        self._spools = [Spool(run_dir / METRICS_FILE), Spool(run_dir / SYSTEM_METRICS_FILE)]
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._files: dict[Path, int] = {}
        self._status = ""

    def update(self, told: Callable[[int], object] = lambda _: None) -> int:
        """Send what MLflow lacks; `told` hears of each batch of points. Returns how many. Raises whatever MLflow raises, and OSError."""
        try:
            session = self._sessions()[-1]
            if self._client is None:
                self._connect()
            self._send_tags(session)
            sent = sum(self._send_points(spool, told) for spool in self._spools)
            self._send_files()
            self._send_status(session)
            if session.status == "finished":
                models.send(self._client, self.run_id, self.run_dir, self._config())
            return sent
        except BaseException:
            self._client = None
            raise

    def _sessions(self) -> list[Session]:
        """Those that can be read; of a run without any, a stand-in."""
        known, _ = sessions.read_all(self.run_dir)
        if known:
            return known
        modified = (self.run_dir / CONFIG_FILE).stat().st_mtime
        return [Session(began=modified, seen=modified, world=1, status="stopped")]

    def _first(self) -> Session:
        return self._sessions()[0]

    def _config(self) -> RunConfig:
        return load_config(self.run_dir / CONFIG_FILE)

    # --- finding the run -------------------------------------------------------------------------------------

    def _connect(self) -> None:
        client = open_client(self.uri)
        config = self._config()
        self.run_id = self._known(client) or self._unnoted(client, config) or self._create(client, config)
        if read_run_ids(self.run_dir).get(self.uri) != self.run_id:
            note_run_id(self.run_dir, self.uri, self.run_id)
        run = client.get_run(self.run_id)
        self._client = client
        self._last_steps = {metric.key: metric.step for metric in run.data._metric_objs}  # what run.data.metrics has, with steps
        self._tags, self._files, self._status = dict(run.data.tags), {}, ""
        for spool in self._spools:
            spool.rewind()
        params = describing.params(config)
        from mlflow.entities import Param

        new = [Param(name, text) for name, text in params.items() if name not in run.data.params]
        for batch in _batches(new, TEXTS_PER_BATCH):
            client.log_batch(self.run_id, params=batch)
        self._params = {**params, **run.data.params}

    def _known(self, client: Any) -> str | None:
        """Also by the name that the same server had before: a run of ours that is there is not made again."""
        from mlflow.exceptions import MlflowException

        ids = read_run_ids(self.run_dir)
        mine = ids.get(self.uri)
        for run_id in [mine] if mine else ids.values():
            try:
                if client.get_run(run_id).info.lifecycle_stage == "deleted":
                    raise RefusedError(f"its run {run_id} is deleted; restore it with: mlflow runs restore --run-id {run_id}")
                return run_id
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        return None

    def _unnoted(self, client: Any, config: RunConfig) -> str | None:
        """The run that was made for this directory without that being noted: the answer was lost, or the process was killed."""
        if (experiment := client.get_experiment_by_name(config.tracking.experiment)) is None:
            return None
        runs = client.search_runs([experiment.experiment_id], f"tags.`{describing.KEY_TAG}` = '{describing.key(self._first())}'")
        return next((run.info.run_id for run in runs), None)

    def _create(self, client: Any, config: RunConfig) -> str:
        experiment, first = _experiment(client, config.tracking.experiment, artifacts_beside_sqlite(self.uri)), self._first()
        tags = {describing.KEY_TAG: describing.key(first)}
        run = client.create_run(experiment, start_time=int(first.began * 1000), run_name=self.run_dir.name, tags=tags)
        return run.info.run_id

    # --- what it lacks ---------------------------------------------------------------------------------------

    def _send_tags(self, session: Session) -> None:
        from mlflow.entities import RunTag

        config = self._config()
        wanted = describing.tags(config, self.run_dir, session) | describing.changed(config, self._params)
        new = [RunTag(name, text) for name, text in wanted.items() if self._tags.get(name) != text]
        for batch in _batches(new, TEXTS_PER_BATCH):
            self._client.log_batch(self.run_id, tags=batch)
        self._tags |= wanted
        for name in [name for name in self._tags if name.startswith(describing.CHANGED) and name not in wanted]:
            self._client.delete_tag(self.run_id, name)
            del self._tags[name]

    def _send_points(self, spool: Spool, told: Callable[[int], object]) -> int:
        from mlflow.entities import Metric

        sent, last = 0, self._last_steps
        lacking = (point for point in spool.points() if point.step > last.get(point.name, -1))
        for batch in _batches(lacking, METRICS_PER_BATCH):
            self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in batch])
            sent += len(batch)
            told(len(batch))
            _note_steps(last, batch)
        spool.advance()
        return sent

    def _send_files(self) -> None:
        for name in (CONFIG_FILE, CURVE_FILE):
            path = self.run_dir / name
            if path.exists() and self._files.get(path) != (modified := path.stat().st_mtime_ns):
                self._client.log_artifact(self.run_id, str(path))
                self._files[path] = modified

    def _send_status(self, session: Session) -> None:
        status = WILL_COME_BACK if session.comes_back else STATUS.get(session.status, "KILLED")
        if status == self._status:
            return
        if status == "RUNNING":
            self._client.update_run(self.run_id, status)
        else:
            self._client.set_terminated(self.run_id, status, int(session.seen * 1000))
        self._status = status


def _note_steps(last: dict[str, int], points: Sequence[Point]) -> None:
    for point in points:
        last[point.name] = max(point.step, last.get(point.name, -1))


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    try:
        return client.create_experiment(name, artifacts)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return client.get_experiment_by_name(name).experiment_id  # another run made it at the same moment


def _batches(items: Iterable[Any], size: int) -> Iterable[list[Any]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
