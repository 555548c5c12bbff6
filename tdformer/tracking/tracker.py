"""Tracker: what training needs of MLflow. Training wakes it, and waits for it only at the end."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Self

from data_pipelines.errors import UserError
from data_pipelines.storage.passing_trouble import is_passing, unavailable
from tdformer.config import TrackingConfig
from tdformer.distributed.launch_environment import REQUEUES
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.run_lock import MayWrite, always
from tdformer.rundir.sessions import Session, SessionFile, Status
from tdformer.tracking.client import import_mlflow, is_server
from tdformer.tracking.mirror import Mirror
from tdformer.tracking.sender import Sender
from tdformer.tracking.system_metrics import SystemMetrics

SECONDS_TO_START = {True: 10.0, False: 60.0}
"""Seconds to wait for the first answer: of a server (True), or of a sqlite file, which may have to be made first (False)."""
SECONDS_TO_END, SECONDS_TO_END_WITH_MODEL = 30.0, 600.0


class Tracker:
    """Keeps the record of this session of a run, and of its MLflow run.

    As a context manager it ends both: as failed after an exception, else as `end` was told, else as finished. Raises UserError at the start
    if MLflow refuses. A server that does not answer yet is no error: it gets what it lacks when it answers.
    """

    def __init__(self, config: TrackingConfig, run_dir: RunDir, session: Session, may_write: MayWrite = always) -> None:
        import_mlflow()
        self._config, self._run_dir = config, run_dir
        self._status: Status = "finished"
        try:
            self._session = SessionFile(run_dir, session)
        except OSError as error:
            if is_passing(error):
                raise unavailable(run_dir, error) from None
            raise UserError(f"{run_dir} cannot be written ({error.strerror or error}); make room, or see to its permissions.") from None
        self._sender = Sender(Mirror(run_dir, config.uri))
        if refusal := self._sender.first_refusal(SECONDS_TO_START[is_server(config.uri)]):
            self._session.discard()
            raise UserError(f"MLflow at {config.uri} cannot be used ({refusal}); mend tracking.uri, tracking.experiment or the server.")
        self._system = SystemMetrics(run_dir, may_write) if config.system_metrics else None

    def reached(self, step: int) -> None:
        """Say that there are new points in the run's files."""
        self._session.reached(step)
        self._sender.wake()

    def end(self, status: Status) -> None:
        """Say how the run is closed when the context is left without an exception."""
        self._status = status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._system is not None:
            self._system.finish()
        status: Status = self._status if kind is None else "failed"
        with_model = status == "finished" and self._config.log_model != "none"
        try:
            self._session.end(status, comes_back=status == "stopped" and REQUEUES in os.environ)
        except OSError as problem:
            print(f"warning: {self._session.path} cannot be written ({problem.strerror or problem}).", file=sys.stderr)
        if not self._sender.finish(SECONDS_TO_END_WITH_MODEL if with_model else SECONDS_TO_END):
            print(
                f"warning: MLflow at {self._config.uri} has not taken everything; send the rest with: tdformer runs sync {self._run_dir}",
                file=sys.stderr,
            )
