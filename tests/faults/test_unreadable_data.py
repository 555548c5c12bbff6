"""Data that cannot be read for a while, under real runs of two processes: it is waited for, no bit changes, and no sample is left out.

If it does not come back, the run saves its state and ends with exit code 75, and the same command goes on to the same bits.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest

from launch.exit_codes import EXIT_STOPPED
from tests.conftest import write_config
from tests.distributed.starter import Started, tdformer
from tests.runs import STEPS, ReferenceRun, bits, curve, step_name
from tests.unit.test_shard_cache import Server, serving, whole

pytestmark = pytest.mark.slow

DIRECT = {"no_proxy": "127.0.0.1"}


class Outage:
    """Answers 503 with Retry-After from the moment that `begins` to the moment that `ends`. It counts its refusals."""

    def __init__(self) -> None:
        self.is_on, self.refusals = False, 0

    def __call__(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        if not self.is_on:
            whole(request, data)
            return
        self.refusals += 1
        request.send_response(503)
        request.send_header("Retry-After", "1")
        request.send_header("Content-Length", "0")
        request.end_headers()


@pytest.fixture
def outage() -> Outage:
    return Outage()


@pytest.fixture
def web(reference: ReferenceRun, outage: Outage) -> Iterator[Server]:
    with serving(reference.folder / "train", outage) as server:
        yield server


def remote_config(reference: ReferenceRun, tmp_path: Path, web: Server, **data: Any) -> dict:
    """The reference run's configuration, with its training set at a URL, and too small a cache for more than the shards in use."""
    config = reference.config(tmp_path)
    config["data"] |= {"train": web.url, "shard_cache": str(tmp_path / "cache"), **data}
    return config


def start(config: dict, tmp_path: Path, *arguments: object) -> Started:
    command = ["train", write_config(config, tmp_path), "--run-dir", tmp_path / "run", "--processes", 2, *arguments]
    return Started("launch", command, DIRECT, tmp_path / "out")


def again(config: dict, tmp_path: Path, *arguments: object) -> CompletedProcess[str]:
    command = ["train", write_config(config, tmp_path), "--run-dir", tmp_path / "run", "--processes", 2, *arguments]
    return tdformer(*command, environment=DIRECT)


def wait_until(condition: Callable[[], object], run: Started, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, run.output() + run.output("stderr")
        assert run.poll() is None, run.output() + run.output("stderr")
        time.sleep(0.02)


def waits(run: Started) -> list[str]:
    """The lines that say that a rank waits. The file of stderr comes a moment after the process."""
    said = run.output("stderr") if Path(f"{run.out}.stderr").exists() else ""
    return [line for line in said.splitlines() if "tries again by itself" in line]


def assert_as_undisturbed(run: Path, reference: ReferenceRun) -> None:
    assert bits(run) == bits(reference.run)
    assert curve(run) == curve(reference.run)


@pytest.mark.parametrize(("workers", "on_bad_sample", "timeout_s", "outage_s"), [(0, "raise", 9, 12), (2, "skip", 600, 5)])
def test_a_busy_server_changes_no_bit_even_for_longer_than_the_watchdogs_timeout(
    reference: ReferenceRun,
    tmp_path: Path,
    web: Server,
    outage: Outage,
    workers: int,
    on_bad_sample: str,
    timeout_s: float,
    outage_s: float,
) -> None:
    """The timeout is long where there are loader processes, since their start alone takes seconds."""
    config = remote_config(reference, tmp_path, web, workers=workers, on_bad_sample=on_bad_sample)
    config["watchdog"] = {"timeout_s": timeout_s}
    outage_begins_after_opening(web, outage)
    run = start(config, tmp_path)
    wait_until(lambda: waits(run), run)
    time.sleep(outage_s)
    outage.is_on = False
    assert run.wait(120) == 0, run.output("stderr")
    assert_as_undisturbed(tmp_path / "run", reference)
    assert "skipped" not in run.output()
    assert 1 <= len(waits(run)) <= 6, waits(run)
    assert all("HTTP 503" in line for line in waits(run))


def outage_begins_after_opening(web: Server, outage: Outage) -> None:
    """Let manifest and index be read, and every shard be refused."""
    for name in list(web.answers):
        if not name.endswith(".tar"):
            web.answers[name] = [whole]
    outage.is_on = True


def test_a_server_that_stays_busy_ends_the_run_with_its_state_saved(
    reference: ReferenceRun, tmp_path: Path, web: Server, outage: Outage
) -> None:
    """The outage begins before the first batch, so the state is that of step 0; then again in the middle of an epoch."""
    config = remote_config(reference, tmp_path, web, patience_minutes=0.03, on_bad_sample="skip")
    outage_begins_after_opening(web, outage)
    result = again(config, tmp_path)
    assert result.returncode == EXIT_STOPPED, result.stderr
    assert result.stdout.count("stopped by data that cannot be read: ") == 1
    assert "stopped at step 0, state saved" in result.stdout
    assert "Traceback" not in result.stderr
    assert "remove" not in result.stdout + result.stderr
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == f"{step_name(0)}\n"
    outage.is_on = False
    assert again(config, tmp_path).returncode == 0
    assert_as_undisturbed(tmp_path / "run", reference)


def test_a_folder_that_goes_in_the_middle_of_an_epoch_ends_the_run_and_the_resume_gives_the_same_bits(
    reference: ReferenceRun, tmp_path: Path
) -> None:
    shutil.copytree(reference.folder / "train", tmp_path / "train")
    config = reference.config(tmp_path)
    config["data"] |= {"train": str(tmp_path / "train"), "patience_minutes": 0.03}
    config["checkpoint"]["every_steps"] = None
    metrics = tmp_path / "run" / "metrics.jsonl"
    run = start(config, tmp_path)
    wait_until(metrics.exists, run)
    (tmp_path / "train").rename(tmp_path / "away")
    assert run.wait(120) == EXIT_STOPPED, run.output() + run.output("stderr")
    reached = (tmp_path / "run" / "checkpoints" / "latest").read_text().strip()
    assert step_name(0) < reached < step_name(STEPS)
    (tmp_path / "away").rename(tmp_path / "train")
    assert again(config, tmp_path).returncode == 0
    assert_as_undisturbed(tmp_path / "run", reference)


def test_a_validation_set_that_goes_leaves_the_evaluation_to_the_resume(reference: ReferenceRun, tmp_path: Path) -> None:
    shutil.copytree(reference.folder / "val", tmp_path / "val")
    config = reference.config(tmp_path)
    config["data"] |= {"val": str(tmp_path / "val"), "patience_minutes": 0.03}
    metrics = tmp_path / "run" / "metrics.jsonl"
    run = start(config, tmp_path)
    wait_until(metrics.exists, run)
    (tmp_path / "val").rename(tmp_path / "away")
    assert run.wait(120) == EXIT_STOPPED, run.output() + run.output("stderr")
    assert "stopped by validation data that cannot be read: " in run.output()
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == f"{step_name(4)}\n"
    (tmp_path / "away").rename(tmp_path / "val")
    assert again(config, tmp_path).returncode == 0
    assert_as_undisturbed(tmp_path / "run", reference)


def test_a_stop_signal_ends_the_wait_at_once(reference: ReferenceRun, tmp_path: Path, web: Server, outage: Outage) -> None:
    config = remote_config(reference, tmp_path, web)
    outage_begins_after_opening(web, outage)
    run = start(config, tmp_path)
    wait_until(lambda: waits(run), run)
    began = time.monotonic()
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait(60) == EXIT_STOPPED, run.output("stderr")
    assert time.monotonic() - began < 15
    assert "stopped by SIGTERM" in run.output()
    outage.is_on = False
    assert again(config, tmp_path).returncode == 0
    assert_as_undisturbed(tmp_path / "run", reference)


def test_a_server_that_is_busy_at_the_start_ends_it_with_code_75_and_leaves_no_run(
    reference: ReferenceRun, tmp_path: Path, web: Server, outage: Outage
) -> None:
    config = remote_config(reference, tmp_path, web, patience_minutes=0.02)
    outage.is_on = True
    result = tdformer("train", write_config(config, tmp_path), "--processes", 2, environment=DIRECT)
    assert result.returncode == EXIT_STOPPED, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "HTTP 503" in errors[0]
    assert "Traceback" not in result.stderr
    assert list(Path(config["output"]).glob("*")) == []


def test_a_killed_loader_process_ends_the_run_with_its_state_saved(reference: ReferenceRun, tmp_path: Path) -> None:
    config = reference.config(tmp_path)
    config["data"]["workers"] = 1
    metrics = tmp_path / "run" / "metrics.jsonl"
    run = start(config, tmp_path)
    wait_until(metrics.exists, run)
    helpers = [helper for rank in psutil.Process(run.pid).children() for helper in rank.children()]
    loaders = [loader for helper in helpers for loader in helper.children()]
    assert loaders
    loaders[0].kill()
    assert run.wait(120) == EXIT_STOPPED, run.output() + run.output("stderr")
    assert "stopped by data that cannot be read: " in run.output()
    assert "loader process" in run.output()
    assert again(config, tmp_path).returncode == 0
    assert_as_undisturbed(tmp_path / "run", reference)


def test_a_resumed_run_whose_data_folder_is_gone_comes_back(reference: ReferenceRun, tmp_path: Path) -> None:
    """A requeued job may come to a machine where the disk is not mounted."""
    shutil.copytree(reference.folder / "train", tmp_path / "train")
    config = reference.config(tmp_path)
    config["data"]["train"] = str(tmp_path / "train")
    assert again(config, tmp_path, "preemption.max_minutes=0.001").returncode == EXIT_STOPPED
    (tmp_path / "train").rename(tmp_path / "away")
    result = again(config, tmp_path, "data.patience_minutes=0.01")
    assert result.returncode == EXIT_STOPPED, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert f"{tmp_path / 'train' / 'manifest.json'} cannot be read now (No such file or directory)" in error
    (tmp_path / "away").rename(tmp_path / "train")
    assert again(config, tmp_path).returncode == 0
    assert_as_undisturbed(tmp_path / "run", reference)


def test_evaluate_ends_with_code_75_for_data_that_cannot_be_read_now(reference: ReferenceRun, tmp_path: Path, outage: Outage) -> None:
    with serving(reference.folder / "val", outage) as web:
        outage_begins_after_opening(web, outage)
        place = [f"data.val={web.url}", f"data.shard_cache={tmp_path / 'cache'}", "data.patience_minutes=0.02"]
        result = tdformer("evaluate", reference.run, *place, environment=DIRECT)
        assert result.returncode == EXIT_STOPPED, result.stderr
        assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1
        outage.is_on = False
        assert tdformer("evaluate", reference.run, *place, environment=DIRECT).returncode == 0


@pytest.mark.parametrize("name", [f"checkpoints/{step_name(6)}/manifest.json", "config.yaml", "checkpoints/latest", "metrics.jsonl"])
def test_a_run_that_cannot_be_read_now_is_neither_damaged_nor_begun_anew(reference: ReferenceRun, tmp_path: Path, name: str) -> None:
    """The file is a link to what gives EIO. No older checkpoint takes the place of the newest, and nothing is written."""
    run = reference.copy_cut_after(6, tmp_path)
    path = run / name
    path.rename(tmp_path / "kept")
    path.symlink_to("/proc/self/mem")
    before = sorted(entry.name for entry in (run / "checkpoints").iterdir())
    result = tdformer("train", run, "--processes", 2, "data.patience_minutes=0.01")
    assert result.returncode == EXIT_STOPPED, result.stdout + result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1, result.stderr
    assert "cannot be read now (Input/output error)" in result.stderr
    assert not any(word in result.stderr for word in ("damaged:", "Traceback", "remove", "restore"))
    assert sorted(entry.name for entry in (run / "checkpoints").iterdir()) == before
    (tmp_path / "kept").replace(path)
    assert tdformer("train", run, "--processes", 2, "data.patience_minutes=0.01").returncode == 0
    assert_as_undisturbed(run, reference)
