"""MLflow on a real database: equal to the run directory, whatever came between; never in the way."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from pydantic import ValidationError

from data_pipelines.errors import UserError
from tdformer.config import RunConfig
from tdformer.distributed.launch_environment import REQUEUES
from tdformer.rundir import creation, sessions
from tdformer.rundir.metrics_file import MetricsFile
from tdformer.rundir.run_dir import RunDir
from tdformer.rundir.sessions import Session, SessionFile
from tdformer.tracking import description, mlflow_run, sync
from tdformer.tracking.run_ids import note_run_id, read_run_id
from tdformer.tracking.spool import Spool
from tdformer.tracking.tracker import Tracker

SESSION = Session(began=1_700_000_000.25, seen=1_700_000_000.25, world_size=2, device="cpu", host="node1", commit="abc changed")


@pytest.fixture
def config(tmp_path: Path, empty_mlflow: Path) -> RunConfig:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "system_metrics": False}
    return RunConfig.model_validate({"name": "x", "data": {"train": "a", "val": "b"}, "tracking": tracking})


@pytest.fixture
def run_dir(tmp_path: Path, config: RunConfig) -> RunDir:
    made = RunDir(tmp_path / "run")
    creation.claim(made, config)
    return made


def tracker(config: RunConfig, run_dir: RunDir, **changes: Any) -> Tracker:
    return Tracker(config.tracking, run_dir, replace(SESSION, **changes))


def log(to: Tracker, run_dir: RunDir, step: int, **metrics: float) -> None:
    MetricsFile(run_dir.metrics).append(step, step / 10, {f"train/{name}": value for name, value in metrics.items()})
    to.reached(step)


def run_at(uri: str, run_dir: RunDir) -> Any:
    return MlflowClient(uri).get_run(read_run_id(run_dir, uri))


def status(config: RunConfig, run_dir: RunDir) -> str:
    return run_at(config.tracking.uri, run_dir).info.status


def points(uri: str, run_dir: RunDir, name: str) -> list[tuple[int, float]]:
    history = MlflowClient(uri).get_metric_history(read_run_id(run_dir, uri), f"train/{name}")
    return [(point.step, point.value) for point in history]


def test_a_run_is_running_then_finished_killed_or_failed(config: RunConfig, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracker(config, run_dir):
        assert status(config, run_dir) == "RUNNING"
    assert status(config, run_dir) == "FINISHED"
    with tracker(config, run_dir) as again:
        assert status(config, run_dir) == "RUNNING"
        again.end("stopped")
    assert status(config, run_dir) == "KILLED"
    with pytest.raises(ZeroDivisionError), tracker(config, run_dir):
        _ = 1 / 0
    assert status(config, run_dir) == "FAILED"
    monkeypatch.setenv(REQUEUES, "1")
    with tracker(config, run_dir) as again:
        again.end("stopped")
    assert status(config, run_dir) == "SCHEDULED"
    sync.close(run_dir, comes_back=False)
    assert status(config, run_dir) == "KILLED"


def test_sessions_tell_the_same(config: RunConfig, run_dir: RunDir) -> None:
    with tracker(config, run_dir) as first:
        log(first, run_dir, 1, loss=1.0)
        first.end("stopped")
    with tracker(config, run_dir, world_size=4):
        pass
    begun, notes = sessions.read_all(run_dir)
    assert [(each.status, each.world_size, each.step) for each in begun] == [("stopped", 2, 1), ("finished", 4, 0)]
    assert not notes
    assert all(each.seen > each.began for each in begun)


def test_a_resume_doubles_no_point_and_loses_none(config: RunConfig, run_dir: RunDir) -> None:
    """The first process reached step 3 without evaluating; the second one replays from step 2 and evaluates at 3."""
    with tracker(config, run_dir) as first:
        for step in (1, 2, 3):
            log(first, run_dir, step, loss=float(step))
    first_id = read_run_id(run_dir, config.tracking.uri)
    MetricsFile(run_dir.metrics).cut_after(1, 0, log_every=1)
    with tracker(config, run_dir) as second:
        for step in (2, 3, 4):
            log(second, run_dir, step, loss=float(step), **({"top1": 50.0} if step == 3 else {}))
    assert read_run_id(run_dir, config.tracking.uri) == first_id
    assert points(config.tracking.uri, run_dir, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert points(config.tracking.uri, run_dir, "top1") == [(3, 50.0)]


@pytest.mark.parametrize("is_noted", [True, False])
def test_a_copied_run_directory_gets_a_run_of_its_own(config: RunConfig, run_dir: RunDir, tmp_path: Path, is_noted: bool) -> None:
    """The copy brings along the note of the original's run, or the session by which that run is found."""
    with tracker(config, run_dir) as first:
        log(first, run_dir, 1, loss=1.0)
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run_dir.path, copy.path)
    if not is_noted:
        copy.mlflow_runs.unlink()
    for step in (2, 3):
        with tracker(config, copy) as second:
            log(second, copy, step, loss=20.0)
    with tracker(config, run_dir) as again:
        log(again, run_dir, 2, loss=2.0)
    assert points(config.tracking.uri, run_dir, "loss") == [(1, 1.0), (2, 2.0)]
    assert points(config.tracking.uri, copy, "loss") == [(1, 1.0), (2, 20.0), (3, 20.0)]
    assert read_run_id(run_dir, None) != read_run_id(copy, None)
    assert len(MlflowClient(config.tracking.uri).search_runs(["0", "1"])) == 2


def test_a_run_directory_that_was_moved_keeps_its_run(config: RunConfig, run_dir: RunDir, tmp_path: Path) -> None:
    with tracker(config, run_dir) as first:
        log(first, run_dir, 1, loss=1.0)
    noted, moved = read_run_id(run_dir, None), RunDir(tmp_path / "moved")
    run_dir.path.rename(moved.path)
    link = RunDir(tmp_path / "link")
    link.path.symlink_to(moved.path)
    for path in (moved, link):
        with tracker(config, path):
            pass
        assert read_run_id(path, None) == noted


def test_a_damaged_note_of_runs_is_kept_beside_the_new_one(run_dir: RunDir) -> None:
    run_dir.mlflow_runs.write_text('{"sqlite:///a": "1", "https://b": "2"')
    note_run_id(run_dir, "sqlite:///a", "1")
    assert read_run_id(run_dir, "sqlite:///a") == "1"
    assert run_dir.mlflow_runs.with_suffix(".damaged").read_text() == '{"sqlite:///a": "1", "https://b": "2"'


def test_artifacts_lie_beside_the_database(config: RunConfig, run_dir: RunDir, tmp_path: Path) -> None:
    with tracker(config, run_dir):
        pass
    copies = [path.read_text() for path in (tmp_path / "mlflow_artifacts").rglob("config.yaml")]
    assert copies == [(run_dir.path / "config.yaml").read_text()]


def test_a_store_that_breaks_is_told_once_and_gets_all_when_it_is_mended(
    config: RunConfig, run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "mlflow.db"
    with tracker(config, run_dir) as broken:
        database.rename(tmp_path / "away.db")
        database.write_bytes(b"no database any more")
        for step in (1, 2, 3):
            log(broken, run_dir, step, loss=float(step))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 2
    assert "takes nothing now" in warnings[0]
    assert "training goes on" in warnings[0]
    assert warnings[1].endswith(f"send the rest with: tdformer runs sync {run_dir}")
    with pytest.raises(UserError, match="nothing is lost"):
        sync.sync(run_dir)
    (tmp_path / "away.db").rename(database)
    assert sync.sync(run_dir).points == 3
    assert sync.sync(run_dir).points == 0
    assert points(config.tracking.uri, run_dir, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert status(config, run_dir) == "FINISHED"


def test_an_unusable_store_is_refused_at_the_start_and_leaves_nothing(config: RunConfig, run_dir: RunDir, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    with pytest.raises(UserError, match=r"MLflow at sqlite:.* cannot be used .*mend tracking\.uri"):
        tracker(config, run_dir)
    assert [path.name for path in run_dir.path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("uri", ["ftp://nowhere/x", "file:///tmp/x", "postgresql://nowhere/x", "sqlite:////proc/x/y.db", "nonsense:"])
def test_uris_that_cannot_be_meant(config: RunConfig, run_dir: RunDir, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"cannot be used .*mend tracking\.uri"):
        tracker(config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri})}), run_dir)
    assert capsys.readouterr().err == ""


def test_a_database_of_another_version_is_refused(config: RunConfig, run_dir: RunDir, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    with pytest.raises(UserError, match=r"out-of-date database schema"):
        tracker(config, run_dir)


def test_a_run_whose_process_died_is_closed_from_outside(config: RunConfig, run_dir: RunDir) -> None:
    sync.close(run_dir)  # not yet begun: nothing to do
    assert not run_dir.mlflow_runs.exists()
    SessionFile(run_dir, SESSION)
    MetricsFile(run_dir.metrics).append(1, 0.1, {"train/loss": 1.0})
    sync.close(run_dir)
    assert status(config, run_dir) == "FAILED"
    assert points(config.tracking.uri, run_dir, "loss") == [(1, 1.0)]
    with tracker(config, run_dir):
        pass
    sync.close(run_dir)
    assert status(config, run_dir) == "FINISHED"


def test_a_close_that_was_cut_off_is_done_by_the_next_one(config: RunConfig, run_dir: RunDir) -> None:
    """A rank closes the session, and the launcher kills it before MLflow has heard of that."""
    tracker(config, run_dir)._sender.finish(10)
    assert sessions.close_last(run_dir)
    assert status(config, run_dir) == "RUNNING"
    sync.close(run_dir)
    assert status(config, run_dir) == "FAILED"


def test_parameters_and_tags(config: RunConfig, run_dir: RunDir, tmp_path: Path) -> None:
    """Parameters are texts that say one value each; a resume that changes one is a tag, as long as it is changed."""
    with tracker(config, run_dir, slurm_job="17_2", restart=1):
        pass
    logged = run_at(config.tracking.uri, run_dir).data
    assert logged.params == description.params(config)
    assert (logged.params["model.carry_membrane"], logged.params["init"], logged.params["optimizer.betas"]) == (
        "true",
        "null",
        "[0.9, 0.999]",
    )
    expected = {"mlflow.source.git.commit": "abc", "tdformer.git_dirty": "true", "tdformer.config": "x", "tdformer.world_size": "2"}
    expected |= {"tdformer.slurm_job": "17_2", "tdformer.slurm_restart": "1", "tdformer.run_dir": str(run_dir)}
    assert expected.items() <= logged.tags.items()

    other = config.model_copy(update={"training": config.training.model_copy(update={"zero_stage": 3})})
    creation.claim(run_dir, other)
    with tracker(other, run_dir):
        pass
    logged = run_at(config.tracking.uri, run_dir).data
    assert (logged.params["training.zero_stage"], logged.tags["changed.training.zero_stage"]) == ("1", "3")

    creation.claim(run_dir, config)
    with tracker(config, run_dir):
        pass
    assert not [name for name in run_at(config.tracking.uri, run_dir).data.tags if name.startswith("changed.")]

    child = RunDir(tmp_path / "child")
    tuned = config.model_copy(update={"init": run_dir.path / "checkpoints" / "step-00000001"})
    creation.claim(child, tuned)
    with tracker(tuned, child):
        pass
    assert run_at(config.tracking.uri, child).data.tags["tdformer.parent_run"] == read_run_id(run_dir, None)


def test_another_server_gets_all_and_the_same_by_another_name_gets_nothing_twice(
    config: RunConfig, run_dir: RunDir, tmp_path: Path, empty_mlflow: Path
) -> None:
    with tracker(config, run_dir) as first:
        log(first, run_dir, 1, loss=1.0)
    shutil.copy(empty_mlflow, tmp_path / "other.db")
    other, same = f"sqlite:///{tmp_path}/other.db", f"sqlite:///{tmp_path}/run/../mlflow.db"
    assert sync.sync(run_dir, other).points == 1
    assert points(other, run_dir, "loss") == [(1, 1.0)]
    synced = sync.sync(run_dir, same)
    assert (synced.points, synced.run_id) == (0, read_run_id(run_dir, config.tracking.uri))


def test_a_folder_that_cannot_be_written_is_sent_once_all_the_same(
    config: RunConfig, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    SessionFile(run_dir, SESSION).end("finished")
    MetricsFile(run_dir.metrics).append(1, 0.1, {"train/loss": 1.0})

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mlflow_run, "note_run_id", refuse)
    first, second = sync.sync(run_dir), sync.sync(run_dir)
    assert (first.points, second.points, first.run_id) == (1, 0, second.run_id)


@pytest.mark.parametrize("content", [None, "{", "[1]", '"x"'])
def test_a_run_is_found_again_without_its_note(config: RunConfig, run_dir: RunDir, content: str | None) -> None:
    with tracker(config, run_dir) as first:
        log(first, run_dir, 1, loss=1.0)
    run_id = read_run_id(run_dir, config.tracking.uri)
    run_dir.mlflow_runs.unlink() if content is None else run_dir.mlflow_runs.write_text(content)
    assert sync.sync(run_dir) == sync.Synced(run_dir, config.tracking.uri, run_id or "", 0)


def test_a_run_that_was_deleted_is_not_begun_anew(config: RunConfig, run_dir: RunDir) -> None:
    with tracker(config, run_dir):
        pass
    run_id = read_run_id(run_dir, config.tracking.uri)
    MlflowClient(config.tracking.uri).delete_run(run_id)
    with pytest.raises(UserError, match=f"its run {run_id} is deleted; restore it with: mlflow runs restore --run-id {run_id}"):
        tracker(config, run_dir)
    assert len(sessions.files(run_dir)) == 1


def test_a_run_that_the_server_does_not_know_is_sent_whole(config: RunConfig, run_dir: RunDir) -> None:
    """A server does not know its runs any more after its database was made anew."""
    note_run_id(run_dir, config.tracking.uri, "0123456789abcdef0123456789abcdef")
    with tracker(config, run_dir) as first:
        log(first, run_dir, 1, loss=1.0)
    assert points(config.tracking.uri, run_dir, "loss") == [(1, 1.0)]


ODD_ROWS = [
    '{"step": -5, "time": 1, "train/x": 1}',
    '{"step": 1e400, "time": 1, "train/x": 1}',
    '{"step": 99999999999999999999999, "time": 1, "train/x": 1}',
    '{"step": 2, "time": NaN, "train/x": 1}',
    '{"step": 2, "time": -1, "train/x": 1}',
    '{"step": 2, "time": "now", "train/x": 1}',
    '{"step": 2, "time": 1, "train/x": 1%s}' % ("0" * 400),
    '{"step": 2, "time": 1, "train/x!": 1, "/x": 1, "train/": 1, "train//x": 1, "../x": true, "train/x": "1"}',
    "[1]",
    "null",
    "[" * 100_000,
]


@pytest.mark.parametrize("row", ODD_ROWS, ids=range(len(ODD_ROWS)))
def test_what_mlflow_would_refuse_holds_up_nothing(config: RunConfig, run_dir: RunDir, row: str) -> None:
    with tracker(config, run_dir):
        run_dir.metrics.write_text(f'{row}\n{{"step": 3, "time": 1, "train/y": 1.5, "train/z": NaN, "train/inf": Infinity}}\n')
    assert points(config.tracking.uri, run_dir, "y") == [(3, 1.5)]
    assert run_at(config.tracking.uri, run_dir).data.metrics.keys() == {"train/y", "train/z", "train/inf"}


@pytest.mark.parametrize("uri", ["http://ada:secret@host:5000", "https://ada@host/path", "", "  "])
def test_uris_that_must_not_be_written_down(config: RunConfig, run_dir: RunDir, uri: str) -> None:
    with pytest.raises(ValidationError, match=r"must hold no user and password|must name a tracking URI"):
        RunConfig.model_validate({"name": "x", "data": {"train": "a", "val": "b"}, "tracking": {"uri": uri}})
    with pytest.raises(UserError, match="--uri"):
        sync.sync(run_dir, uri)


def test_a_live_run_is_left_to_its_own_process(config: RunConfig, run_dir: RunDir) -> None:
    sends_itself = pytest.raises(UserError, match=r"is being trained, and its process sends .* by itself")
    with creation.held(run_dir, config, lambda _: None), sends_itself:
        sync.sync(run_dir)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.data())
def test_a_spool_that_grows_gives_every_point_once(tmp_path: Path, data: st.DataObject) -> None:
    """Read at any moment, also within a row and with damaged rows between, and again if what was read did not arrive."""
    rows = data.draw(st.lists(st.dictionaries(st.sampled_from(["train/a", "train/b", "val/c"]), st.floats(allow_nan=False)), max_size=12))
    wanted = [(name, value, step) for step, row in enumerate(rows) for name, value in row.items()]
    texts = [json.dumps({"step": step, "epoch": 0.5, "time": 1.5, **row}) + "\n" for step, row in enumerate(rows)]
    damaged = data.draw(st.sampled_from(["", "{half\n", "[]\n", '{"step": "x"}\n', "\xff\n"]))
    whole = damaged.join(["", *texts]).encode(errors="replace")
    path = tmp_path / "points.jsonl"
    path.write_bytes(b"")
    spool, arrived, at = Spool(path), [], 0
    while at < len(whole):
        size = data.draw(st.integers(1, len(whole) - at))
        with path.open("ab") as file:
            file.write(whole[at : at + size])
        at += size
        found = [(point.name, point.value, point.step) for point in spool.points()]
        if at == len(whole) or data.draw(st.booleans()):
            spool.advance()
            arrived += found
    assert arrived == wanted


@pytest.mark.parametrize("step", [2000, 0])
def test_a_row_with_a_wrong_step_costs_mlflow_no_other_point(config: RunConfig, run_dir: RunDir, step: int) -> None:
    with tracker(config, run_dir):
        pass
    record = MetricsFile(run_dir.metrics)
    for number in range(1, 7):
        record.append(number, number / 4, {"train/loss": float(number)})
    run_dir.metrics.write_text(run_dir.metrics.read_text().replace('"step": 3', f'"step": {step}'))
    sync.sync(run_dir)
    assert points(config.tracking.uri, run_dir, "loss") == [(number, float(number)) for number in (1, 2, 4, 5, 6)]


@pytest.mark.parametrize("which", ["the only session", "the last of two"])
def test_a_damaged_session_changes_no_status_in_mlflow(config: RunConfig, run_dir: RunDir, which: str) -> None:
    for _ in range(2 if which == "the last of two" else 1):
        with tracker(config, run_dir) as own:
            own.end("finished")
    sync.sync(run_dir)
    before = MlflowClient(config.tracking.uri).get_run(read_run_id(run_dir, None)).info
    sorted(run_dir.sessions.iterdir())[-1].write_text("damaged")
    sync.sync(run_dir)
    after = MlflowClient(config.tracking.uri).get_run(read_run_id(run_dir, None)).info
    assert (after.status, after.end_time) == (before.status, before.end_time) == ("FINISHED", before.end_time)


def test_a_copy_is_known_by_its_first_session_whatever_became_of_the_originals_note(
    config: RunConfig, run_dir: RunDir, tmp_path: Path
) -> None:
    with tracker(config, run_dir) as first:
        log(first, run_dir, 1, loss=1.0)
    copy = RunDir(tmp_path / "copy")
    shutil.copytree(run_dir.path, copy.path)
    run_id = read_run_id(run_dir, None)
    run_dir.mlflow_runs.write_text("xx")
    sync.sync(copy)
    assert read_run_id(copy, None) != run_id
    sync.sync(run_dir)
    assert read_run_id(run_dir, None) == run_id


def test_a_run_that_mlflow_never_heard_of_and_its_copy_are_two(config: RunConfig, run_dir: RunDir, tmp_path: Path) -> None:
    with tracker(config, run_dir) as first:
        log(first, run_dir, 1, loss=1.0)
    copy, other = RunDir(tmp_path / "copy"), f"sqlite:///{tmp_path}/other.db"
    shutil.copytree(run_dir.path, copy.path)
    for each in (run_dir, copy):
        each.mlflow_runs.unlink()
    ids = {sync.sync(each, other).run_id for each in (run_dir, copy)}
    assert len(ids) == 2
    assert {sync.sync(each, other).run_id for each in (run_dir, copy)} == ids


@pytest.mark.parametrize("name", ["x.db?timeout=30", "p%41.db", "d%20b.db"])
def test_the_file_of_a_sqlite_uri_is_the_one_that_mlflow_opens(config: RunConfig, run_dir: RunDir, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "own"
    uri = f"sqlite:///{folder}/{name}"
    with tracker(config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": uri})}), run_dir) as own:
        log(own, run_dir, 1, loss=1.0)
    assert [path.name for path in folder.glob("*db*")] == [{"x": "x.db", "p": "pA.db", "d": "d b.db"}[name[0]]]


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(config: RunConfig, uri: str) -> None:
    with pytest.raises(ValidationError, match="a database in memory keeps nothing"):
        RunConfig.model_validate({**config.model_dump(), "tracking": {"uri": uri}})
