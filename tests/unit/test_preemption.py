"""What tells a run to stop: signals, its own deadline, the end of its Slurm job."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from tdformer.config import PreemptionConfig, RunConfig
from tdformer.config.yaml_io import ConfigError, load_config
from tdformer.training.faults.preemption import deadline, stopping
from tests.conftest import write_config
from tests.distributed.starter import tdformer

NEVER = (float("inf"), "")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_sets_the_flag_and_later_ones_change_nothing(name: str) -> None:
    inherited = signal.signal(signal.Signals[name], signal.SIG_DFL)  # under nohup, SIGHUP is ignored
    before = signal.getsignal(signal.SIGUSR1)
    with stopping(PreemptionConfig()) as stop:
        assert not stop
        assert stop.reason == ""
        signal.raise_signal(signal.Signals[name])  # to this thread: one sent to the process may come later
        signal.raise_signal(signal.SIGUSR1)
        assert stop
        assert stop.reason == name
    assert signal.getsignal(signal.SIGUSR1) == before
    signal.signal(signal.Signals[name], inherited)


def test_signals_that_are_not_listed_keep_their_effect() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopping(PreemptionConfig(signals=("SIGUSR2",))) as stop:
        assert signal.getsignal(signal.SIGINT) == before
        signal.raise_signal(signal.SIGUSR2)
        assert stop.reason == "SIGUSR2"


def test_other_signals_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\ndata: {train: a, val: b}\npreemption: {signals: [SIGKILL]}\n")
    allowed = "'SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1' or 'SIGUSR2'"
    with pytest.raises(ConfigError, match=rf"preemption\.signals\.0: got 'SIGKILL', allowed is {allowed}"):
        load_config(path)


def test_minutes_are_counted_from_the_start_of_the_process() -> None:
    assert deadline(PreemptionConfig(), 1000.0, {}) == NEVER
    assert deadline(PreemptionConfig(max_minutes=30), 1000.0, {}) == (2800.0, "its deadline of 30 minutes")
    age = (time.time() - psutil.Process().create_time()) / 60
    with stopping(PreemptionConfig(max_minutes=age + 0.005)) as stop:
        assert not stop
        time.sleep(0.4)
        assert stop
        assert stop.reason.startswith("its deadline of")


def test_the_end_of_a_slurm_job() -> None:
    job = {"SLURM_JOB_END_TIME": "8200"}
    assert deadline(PreemptionConfig(), 1000.0, job) == (7900.0, "the end of its Slurm job in 5 minutes")
    assert deadline(PreemptionConfig(minutes_before_end=10, max_minutes=1000), 1000.0, job)[0] == 7600.0
    assert deadline(PreemptionConfig(max_minutes=2), 1000.0, job) == (1120.0, "its deadline of 2 minutes")
    assert deadline(PreemptionConfig(minutes_before_end=None), 1000.0, job) == NEVER
    assert deadline(PreemptionConfig(), 8000.0, job) == (8100.0, "the end of its Slurm job in 1.7 minutes"), "a job of 200 s"
    assert deadline(PreemptionConfig(), 1000.0, {"SLURM_JOB_END_TIME": "Unknown"}) == NEVER


def test_it_may_change_on_a_resume(tmp_path: Path) -> None:
    from tdformer.rundir import creation
    from tdformer.rundir.run_dir import RunDir

    config = RunConfig.model_validate({"name": "x", "data": {"train": "a", "val": "b"}})
    creation.claim(RunDir(tmp_path), config)
    changed = config.model_copy(update={"preemption": PreemptionConfig(max_minutes=1)})
    creation.claim(RunDir(tmp_path), changed)
    assert load_config(tmp_path / "config.yaml") == changed


@pytest.mark.slow
def test_a_run_stops_at_its_deadline_and_the_resume_goes_on(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["epochs"] = 500
    run = tmp_path / "run"
    config = write_config(run_config, tmp_path)
    result = tdformer("train", config, "preemption.max_minutes=0.05", "--run-dir", run, "--processes", 2)
    assert result.returncode == 75, result.stderr
    assert "stopped by its deadline of 0.05 minutes" in result.stdout
    assert f"state saved; go on with: tdformer train {run} --processes 2" in result.stdout
    resumed = tdformer("train", run, "preemption.max_minutes=0.05", "--processes", 2)
    assert resumed.returncode == 75, resumed.stderr
    assert "resumed at step" in resumed.stdout
