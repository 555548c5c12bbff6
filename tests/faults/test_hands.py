"""What people do to a run directory by hand, while nobody trains it and while somebody does: nothing is lost, and it is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launch.exit_codes import EXIT_STOPPED
from tests.conftest import REPOSITORY, write_config
from tests.distributed.starter import Started, tdformer
from tests.distributed.test_bad_input import assert_one_sentence, fingerprint
from tests.faults.test_lock import ELSEWHERE, forge
from tests.runs import ReferenceRun, bits, curve, cut_back, resume, tracked

pytestmark = pytest.mark.slow


# --- between two starts --------------------------------------------------------------------------------------


def test_one_damaged_line_of_the_metrics_costs_no_other(reference: ReferenceRun, tmp_path: Path) -> None:
    run = reference.copy_cut_after(7, tmp_path)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    damaged = b"\xff" + lines[1][1:]
    (run / "metrics.jsonl").write_bytes(b"".join([lines[0], damaged, *lines[2:]]))
    assert "metrics.jsonl: line 2 cannot be read; what is there is kept" in resume(run).stdout
    now = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert now[1] == damaged
    (run / "metrics.jsonl").write_bytes(b"".join([now[0], *now[2:]]))
    assert curve(run) == [row for row in curve(reference.run) if row["step"] != 2]


def test_a_damaged_last_line_at_the_checkpoint_is_kept(reference: ReferenceRun, tmp_path: Path) -> None:
    """The row of that line is not computed again, so what is left of it stays, and is told."""
    run = reference.copy_cut_after(7, tmp_path)
    lines = [line for line in (run / "metrics.jsonl").read_bytes().splitlines(keepends=True) if json.loads(line)["step"] <= 7]
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
    assert f"metrics.jsonl: line {len(lines)} cannot be read; what is there is kept" in resume(run).stdout
    now = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert now[: len(lines)] == [*lines[:-1], lines[-1][:40] + b"\n"]
    assert json.loads(now[len(lines)])["step"] == 8


def test_rows_that_somebody_removed_are_told(reference: ReferenceRun, tmp_path: Path) -> None:
    run = reference.copy_cut_after(7, tmp_path)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:2]))
    assert "metrics.jsonl has no rows from step 2 to step 7, from where the run goes on" in resume(run).stdout


def test_an_older_checkpoint_in_place_of_the_last_is_told(reference: ReferenceRun, tmp_path: Path) -> None:
    run = reference.copy_cut_after(8, tmp_path)
    for step in (6, 7, 8):
        (run / "checkpoints" / f"step-0000000{step}").rename(tmp_path / f"away-{step}")
    (run / "checkpoints" / "latest").unlink()
    said = resume(run).stdout
    assert f"{run}/checkpoints/latest is missing or damaged. The last checkpoint was step-00000008, which is not there" in said
    assert "Going on from step-00000005." in said
    assert bits(run) == bits(reference.run)


@pytest.mark.parametrize("how", ["missing", "no YAML", "a key too many"])
def test_a_configuration_that_cannot_be_used_is_brought_back_from_a_checkpoint(reference: ReferenceRun, tmp_path: Path, how: str) -> None:
    run = reference.copy_cut_after(8, tmp_path)
    whole = (run / "config.yaml").read_bytes()
    if how == "missing":
        (run / "config.yaml").unlink()
    else:
        (run / "config.yaml").write_bytes(whole + (b"[" if how == "no YAML" else b"sed: 3\n"))
    command = f"cp {run}/checkpoints/step-00000008/config.yaml {run}/config.yaml"
    result = tdformer("train", run)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert f"A checkpoint has a copy, which brings it back: {command}" in result.stderr
    shutil.copy(*command.split()[1:])
    resume(run, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")  # the checkpoint's configuration names the database of the reference run


def test_a_value_that_mends_an_edited_configuration_is_taken(reference: ReferenceRun, tmp_path: Path) -> None:
    run = reference.copy_cut_after(8, tmp_path)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("global_batch: 12", "global_batch: 24"))
    assert_one_sentence(tdformer("train", run, "seed=4"), "config.yaml was changed after the run had begun", "global_batch: 12 -> 24")
    resume(run, "training.global_batch=12")
    assert (run / "config.yaml").read_text() == config


def test_a_run_whose_checkpoints_are_gone_is_refused(reference: ReferenceRun, tmp_path: Path) -> None:
    run = reference.copy_cut_after(5, tmp_path)
    (run / "checkpoints").rename(tmp_path / "away")
    before = fingerprint(run)
    result = tdformer("train", run)
    assert_one_sentence(result, "has no checkpoint any more, and its last one was step-00000008", f"put {run}/checkpoints back")
    assert fingerprint(run) == before
    (tmp_path / "away").rename(run / "checkpoints")
    resume(run)
    assert bits(run) == bits(reference.run)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_configuration_edited_in_the_run_directory_is_refused(reference: ReferenceRun, tmp_path: Path, ranks: int) -> None:
    run = reference.copy_cut_after(5, tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["training"]["global_batch"] = 24
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    result = tdformer("train", run, "--processes", ranks)
    assert_one_sentence(result, "config.yaml was changed after the run had begun", "training.global_batch: 12 -> 24", "restore it (cp ")
    shutil.copy(run / "checkpoints" / "step-00000005" / "config.yaml", run / "config.yaml")
    resume(run, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    assert bits(run) == bits(reference.run)


def test_a_start_that_is_refused_for_its_data_does_not_block_the_corrected_command(run_config: dict, tmp_path: Path) -> None:
    run_config["model"]["num_classes"] = 2
    refused = tdformer("train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run")
    assert_one_sentence(refused, "has labels of 3 classes")
    corrected = ("model.num_classes=3", "preemption.max_minutes=0.001")
    result = tdformer("train", write_config(run_config, tmp_path), *corrected, "--run-dir", tmp_path / "run")
    assert result.returncode == 75, result.stderr


# --- while it is trained -------------------------------------------------------------------------------------


@pytest.fixture
def started(run_config: dict, tmp_path: Path) -> Iterator[Started]:
    """Start a long run in tmp_path / "run", and wait for its third checkpoint."""
    run_config["training"]["epochs"] = 10_000
    command = Started("launch", ["train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run"], {}, tmp_path / "out")
    try:
        while not (tmp_path / "run" / "checkpoints" / "step-00000003").exists():
            assert command.poll() is None, command.output("stderr")
            time.sleep(0.02)
        yield command
    finally:
        command.kill()


def files_of(run: Path) -> dict[str, bytes]:
    """All that a second process may read: checkpoints that have their names, pointers, metrics, its own session; no hidden files."""
    names = [path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.name != "0001.json"]
    return {str(name): (run / name).read_bytes() for name in names if not any(part.startswith(".") for part in name.parts)}


def test_a_process_that_lost_its_run_while_it_was_halted_writes_nothing_more(started: Started, tmp_path: Path) -> None:
    run = tmp_path / "run"
    started.halt()
    forge(run, **ELSEWHERE, token="theirs")
    session = run / "sessions" / "0002.json"  # of the process that took the run over
    session.write_text(json.dumps({**json.loads((run / "sessions" / "0001.json").read_text()), "status": "running"}))
    before = files_of(run)
    os.kill(started.pid, signal.SIGCONT)
    assert started.wait(timeout=60) == 69
    assert "was taken over by process" in started.output("stderr")
    assert files_of(run) == before


@pytest.mark.parametrize("how", ["renamed", "removed"])
def test_a_run_directory_that_goes_away_under_a_run(started: Started, tmp_path: Path, how: str) -> None:
    run, renamed = tmp_path / "run", tmp_path / "renamed"
    run.rename(renamed)
    if how == "removed":
        shutil.rmtree(renamed)
    assert started.wait(timeout=60) == 69
    told = started.output("stderr")
    assert f"{run} is gone: it was removed, renamed or unmounted while it was trained" in told
    assert "go on with: tdformer train NEW_PATH" in told
    assert "state saved" not in started.output()
    assert not run.exists()
    if how == "renamed":
        result = tdformer("train", renamed, "preemption.max_minutes=0.001")
        assert result.returncode == 75, result.stderr
        assert "resumed at step" in result.stdout


def test_a_copy_is_trained_beside_its_original(reference: ReferenceRun, tmp_path: Path) -> None:
    """The copy is not held by the original's process, which this test stands for, and writes into an MLflow run of its own."""
    original = reference.copy_cut_after(5, tmp_path)
    resume(original)
    before = tracked(original)
    forge(original)
    copy = cut_back(original, tmp_path / "copy", 5)
    assert "is held by another live run" in tdformer("train", original).stderr
    resume(copy)
    assert bits(copy) == bits(original)
    statuses, points = tracked(original)
    assert len(statuses) == len(before[0]) + 1
    assert len(points) == len(before[1]) + len(curve_points(copy))


def curve_points(run: Path) -> list[float]:
    return [value for row in curve(run) for name, value in row.items() if name != "step"]


# --- found by an attack --------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_last_saved", ["missing", "empty"])
def test_half_a_backup_is_no_new_run(reference: ReferenceRun, tmp_path: Path, of_last_saved: str) -> None:
    """The sessions show that the run had checkpoints, also where last_saved does not."""
    run = reference.copy_cut_after(5, tmp_path)
    (run / "checkpoints").rename(tmp_path / "away")
    (run / "last_saved").unlink() if of_last_saved == "missing" else (run / "last_saved").write_text("")
    before = fingerprint(run)
    assert_one_sentence(tdformer("train", run), "has no checkpoint any more", f"put {run}/checkpoints back")
    assert fingerprint(run) == before


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "state.json", "config.yaml", ""])
def test_a_checkpoint_that_may_not_be_read_is_not_damaged(reference: ReferenceRun, tmp_path: Path, name: str) -> None:
    run = reference.copy_cut_after(6, tmp_path)
    shutil.copytree(reference.folder / "train", tmp_path / "train")
    denied = run / "checkpoints" / "step-00000006" / name
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    mode = denied.stat().st_mode
    deny(denied)
    told = without_privileges("train", run, "data.patience_minutes=0.01")
    assert told.returncode == EXIT_STOPPED, told.stdout + told.stderr
    assert "cannot be read now (Permission denied); see to its permissions" in told.stderr
    assert not any(word in told.stderr for word in ("damaged", "Traceback", "restore"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
    if os.geteuid() == 0:
        os.chown(denied, 0, 0)
    denied.chmod(mode)
    resume(run)
    assert bits(run) == bits(reference.run)


def deny(path: Path) -> None:
    """Let nobody read a file or a folder but its owner, who is somebody else. Without root it is denied to its owner."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        path.chmod(0o700)
    else:
        path.chmod(0)


def without_privileges(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command without root's right to read what is denied to others."""
    dropped = "-dac_override,-dac_read_search,-fowner"
    prefix = ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*prefix, sys.executable, "-m", "launch", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_process_that_was_halted_while_the_run_was_finished_writes_nothing(reference: ReferenceRun, tmp_path: Path) -> None:
    run = reference.copy_cut_after(2, tmp_path)
    halted = Started("launch", ["train", run], {}, tmp_path / "halted")
    while not (run / "checkpoints" / "step-00000003").exists():
        time.sleep(0.005)
    halted.halt()
    (run / "lock.json").unlink()
    resume(run)
    before = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "last_saved", "checkpoints/latest", "config.yaml")}
    os.kill(halted.pid, signal.SIGCONT)
    assert halted.wait(60) in (69, 2)  # this run may reach its last step before the watchdog ends it
    assert {name: (run / name).read_bytes() for name in before} == before
    assert any(words in halted.output("stderr") for words in ("was taken over", "another process trains it"))
    assert bits(run) == bits(reference.run)


def test_a_second_name_of_a_run_is_a_copy(reference: ReferenceRun, tmp_path: Path) -> None:
    """`cp -al` gives the files a second name. What is appended to one run must not come to the other."""
    original = reference.copy_cut_after(5, tmp_path)
    resume(original)
    before, _ = tracked(original)
    copy = tmp_path / "linked"
    shutil.copytree(original, copy, copy_function=os.link)
    content = fingerprint(original)
    resume(cut_back_in_place(copy, 5))
    assert fingerprint(original) == content
    statuses, _ = tracked(original)
    assert len(statuses) == len(before) + 1, "the copy has an MLflow run of its own"


def cut_back_in_place(run: Path, step: int) -> Path:
    """Cut a run back without a write into its files, which have other names."""
    for checkpoint in (run / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    for name in ("checkpoints/latest", "checkpoints/best", "last_saved"):
        (run / name).unlink(missing_ok=True)
    (run / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")
    return run
