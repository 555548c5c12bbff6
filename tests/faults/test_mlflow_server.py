"""A real MLflow server that dies, hangs, loses answers or refuses: training goes on, and in the end every point is there once."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from tdformer.config import RunConfig
from tdformer.rundir import creation
from tdformer.rundir.metrics_file import MetricsFile
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.sessions import Session
from tdformer.tracking import probe, sender, sync
from tdformer.tracking.tracker import Tracker
from tests.conftest import run_id_of, write_config
from tests.distributed.starter import Started, tdformer
from tests.faults.mlflow_server import Server, answering, lossy_road, reply

pytestmark = [pytest.mark.slow]

Points = list[tuple[str, int, float]]


@pytest.fixture(scope="module")
def server(empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    shutil.copy(empty_mlflow, server.database)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def running(server: Server) -> Iterator[Server]:
    """Give each test the server running, whatever the test before did to it."""
    yield server
    if server.process is None:
        server.start()
    server.go_on()


def in_file(run: Path) -> Points:
    rows = [json.loads(line) for line in RunDir(run).metrics.read_text().splitlines()]
    return sorted((name, row["step"], value) for row in rows for name, value in row.items() if "/" in name)


def at(server: Server, run: Path) -> Points:
    """All points that its database has of a run; those that are there twice, twice."""
    with closing(sqlite3.connect(server.database)) as database:
        found = database.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", (run_id_of(run),)).fetchall()
    return sorted(point for point in found if not point[0].startswith("system/"))


def status(server: Server, run: Path) -> str:
    with closing(sqlite3.connect(server.database)) as database:
        return database.execute("SELECT status FROM runs WHERE run_uuid = ?", (run_id_of(run),)).fetchone()[0]


def last_step(run: Path) -> int:
    path = RunDir(run).metrics
    rows = path.read_text().splitlines() if path.exists() else []
    return json.loads(rows[-1])["step"] if rows else 0


def wait_for(run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while last_step(run) < step:
        assert time.monotonic() < deadline, f"training stands at step {last_step(run)}, before {step}"
        time.sleep(0.05)


def long_run(run_config: dict, server: Server, tmp_path: Path, epochs: int) -> tuple[Started, Path]:
    """Start a run with three steps in each epoch."""
    run_config["tracking"]["uri"] = server.uri
    run_config["training"]["epochs"] = epochs
    run = tmp_path / "run"
    return Started("launch", ["train", write_config(run_config, tmp_path), "--run-dir", run], {}, tmp_path / "out"), run


def test_a_server_killed_in_the_middle_and_started_again(running: Server, run_config: dict, tmp_path: Path) -> None:
    process, run = long_run(run_config, running, tmp_path, epochs=25)
    wait_for(run, 5)
    running.kill()
    wait_for(run, last_step(run) + 10)
    running.start()
    assert process.wait(timeout=240) == 0, process.output("stderr")
    # Each outage is said once, however often it was tried. A server that is slow to start again on a busy machine makes another one.
    assert 1 <= process.output("stderr").count("takes nothing now") == process.output("stderr").count("answers again") <= 3
    assert at(running, run) == in_file(run)
    assert status(running, run) == "FINISHED"


def test_a_server_that_hangs_slows_nothing(running: Server, run_config: dict, tmp_path: Path) -> None:
    """Halted for good: training ends all the same, says what to do, and that does it."""
    process, run = long_run(run_config, running, tmp_path, epochs=6)
    wait_for(run, 1)
    running.halt()
    wait_for(run, 18)
    assert process.wait(timeout=300) == 0, process.output("stderr")
    assert f"send the rest with: tdformer runs sync {run}" in process.output("stderr")
    running.go_on()
    done = tdformer("runs", "sync", tmp_path)
    assert done.returncode == 0, done.stderr
    assert at(running, run) == in_file(run)
    assert status(running, run) == "FINISHED"
    assert "nothing was lacking" in tdformer("runs", "sync", run).stdout


def test_a_server_that_is_not_there_at_all(running: Server, run_config: dict, tmp_path: Path) -> None:
    running.kill()
    process, run = long_run(run_config, running, tmp_path, epochs=2)
    assert process.wait(timeout=300) == 0, process.output("stderr")
    assert "nothing listens there" in process.output("stderr")
    refused = tdformer("runs", "sync", run, "--json")
    assert refused.returncode == 2
    assert "nothing is lost, try again" in refused.stderr
    running.start()
    done = tdformer("runs", "sync", run, "--json")
    assert json.loads(done.stdout)["synced"][0]["points"] == len(in_file(run))
    assert at(running, run) == in_file(run)


def test_the_best_network_is_logged_and_registered_once(running: Server, run_config: dict, tmp_path: Path) -> None:
    run_config["tracking"] |= {"uri": running.uri, "log_model": "best", "register_as": "tiny", "system_metrics": False}
    run = tmp_path / "run"
    result = tdformer("train", write_config(run_config, tmp_path), "--run-dir", run)
    assert result.returncode == 0, result.stderr
    assert sync.sync(RunDir(run)).points == 0
    from mlflow import MlflowClient

    client = MlflowClient(running.uri)
    (version,) = client.search_model_versions("name = 'tiny'")
    best = (run / "checkpoints" / "best").read_text().strip()
    assert (version.run_id, version.tags["tdformer.checkpoint"]) == (run_id_of(run), best)
    assert version.tags.keys() >= {"val/top1", "val/loss"}
    folder = client.download_artifacts(run_id_of(run), "model", str(tmp_path))
    exported = tdformer("checkpoint", "export", run / "checkpoints" / best, tmp_path / "exported")
    assert exported.returncode == 0, exported.stderr
    for name in ("config.json", "model.safetensors"):
        assert (Path(folder) / name).read_bytes() == (tmp_path / "exported" / name).read_bytes()


# --- without training: the thread alone ----------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SECONDS_BETWEEN", 0.01), ("FIRST_WAIT_S", 0.01), ("LONGEST_WAIT_S", 0.05)):
        monkeypatch.setattr(sender, name, seconds)


def tracker(uri: str, run: Path) -> Tracker:
    tracking = {"uri": uri, "system_metrics": False}
    config = RunConfig.model_validate({"name": "x", "data": {"train": "a", "val": "b"}, "tracking": tracking})
    creation.claim(RunDir(run), config)
    return Tracker(config.tracking, RunDir(run), Session(began=time.time(), seen=time.time(), world_size=1, host="here"))


@pytest.mark.parametrize("seed", range(3))
def test_lost_requests_and_lost_answers_lose_and_double_nothing(running: Server, tmp_path: Path, quick: None, seed: int) -> None:
    """Each fifth request, and each fifth answer: runs are not made twice either, nor files sent in vain."""
    run = tmp_path / f"run{seed}"
    with lossy_road(running.uri, seed, loss=0.2) as uri:
        with tracker(uri, run) as tracked:
            for step in range(1, 200):
                MetricsFile(RunDir(run).metrics).append(step, step / 10, {"train/loss": 1 / step, "train/lr": float(step)})
                tracked.reached(step)
                time.sleep(0.01)
        for _ in range(50):
            try:
                sync.sync(RunDir(run))
                break
            except UserError:
                continue
        assert sync_until_quiet(run) == 0
    assert at(running, run) == in_file(run)
    assert status(running, run) == "FINISHED"
    with closing(sqlite3.connect(running.database)) as database:
        assert database.execute("SELECT COUNT(*) FROM runs WHERE name = ?", (run.name,)).fetchone() == (1,)


def sync_until_quiet(run: Path) -> int:
    """The points of a sync that got through."""
    for _ in range(50):
        try:
            return sync.sync(RunDir(run)).points
        except UserError:
            continue
    raise AssertionError("no sync got through")


REFUSALS = {
    401: "it does not know you: set MLFLOW_TRACKING_USERNAME",
    403: "it does not permit this to you",
    404: "it does not speak MLflow's API, or an older version of it",
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_server_that_refuses_is_told_at_once(tmp_path: Path, code: int) -> None:
    """In the job, and by submit on the login node before it."""
    with answering(lambda handler: reply(handler, code, b"<html>no</html>", "text/html")) as uri:
        with pytest.raises(UserError, match=REFUSALS[code]):
            tracker(uri, tmp_path / "run")
        with pytest.raises(UserError, match=str(code)):
            probe.probe(uri, "tdformer")


@pytest.mark.parametrize("code", [429, 500, 503, 507])
def test_a_server_in_trouble_refuses_nothing(tmp_path: Path, quick: None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(lambda handler: reply(handler, code, b"{}")) as uri:
        with tracker(uri, tmp_path / "run") as tracked:
            tracked.reached(1)
        assert probe.probe(uri, "tdformer")
    assert capsys.readouterr().err.count("training goes on") == 1


def test_something_else_than_mlflow(tmp_path: Path) -> None:
    with answering(lambda handler: reply(handler, 200, b"<html>Welcome</html>", "text/html")) as uri:
        with pytest.raises(UserError, match=r"cannot be used .*mend tracking\.uri"):
            tracker(uri, tmp_path / "run")
        with pytest.raises(UserError, match="is no MLflow server"):
            probe.probe(uri, "tdformer")


def test_a_probe_of_a_server_that_is_well(running: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.probe(running.uri, "an experiment that is not there yet") is None
    assert "cannot be reached" in str(probe.probe("http://127.0.0.1:9", "tdformer"))
    assert probe.probe("sqlite:///runs/mlflow.db", "tdformer") is None
    seen = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("Authorization"))
        reply(handler, 200, b"{}")

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    with answering(note) as uri:
        assert probe.probe(uri, "tdformer") is None
    assert seen == ["Basic YWRhOnNlY3JldA=="]
