"""What is measured while a run trains, and that nothing is changed by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tdformer.config import RecomputePolicy, RunConfig
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.telemetry import time_left
from tdformer.training.telemetry.firing_rates import FiringRates
from tdformer.training.telemetry.stopwatch import PARTS, Stopwatch
from tdformer.training.telemetry.time_left import TimeLeft, duration
from tdformer.training.telemetry.traces import Traces
from tdformer.training.telemetry.utilisation import peak_tflops
from tests.conftest import tdformer, write_config
from tests.unit.networks import images, lively, small


def test_parts_of_a_step_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 20.0, 22.0, 24.0])
    monkeypatch.setattr("tdformer.training.telemetry.stopwatch.time.perf_counter", lambda: next(clock))
    watch = Stopwatch(torch.device("cpu"))
    for part in PARTS:
        watch.enter(part)
    watch.end_step()
    watch.enter("data_wait")
    watch.enter("forward")
    watch.end_step()
    assert list(watch.take().values()) == [(1 + 2) / 2, (2 + 2) / 2, 3 / 2, 4 / 2, 5 / 2]
    assert set(watch.take().values()) == {0}


def gradients(model: ModelWithLoss, rates: FiringRates | None) -> list[torch.Tensor]:
    torch.manual_seed(1)
    if rates:
        rates.watch(model.model)
    loss = model(images(3), torch.tensor([0, 1, 2]))
    if rates:
        rates.leave()
    return [loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)]


@pytest.mark.parametrize("policy", ["none", "segment", "block", "block_segment"])
def test_firing_rates_change_no_bit_and_count_once(policy: RecomputePolicy) -> None:
    torch.manual_seed(0)
    model, rates = ModelWithLoss(small("qkformer-cifar"), 0.1, policy), FiringRates()
    lively(model)
    for plain, watched in zip(gradients(model, None), gradients(model, rates), strict=True):
        assert (plain is None and watched is None) or torch.equal(plain, watched)
    measured = rates.take()
    stages = {f"{part}{n}" for part in ("patch_embed", "stage") for n in (1, 2, 3)}
    assert set(measured) == {f"firing_rate/{stage}" for stage in (*stages, "processing")}
    assert all(0 <= rate <= 1 for rate in measured.values())
    assert max(measured.values()) > 0
    assert rates.take() == {}


def test_firing_rate_is_spikes_over_neurons_and_time_steps() -> None:
    model, rates = ModelWithLoss(small("qkformer-cifar"), 0.1).model, FiringRates()
    counted: list[torch.Tensor] = []
    model.processing.lif.register_forward_hook(lambda module, inputs, spikes: counted.append(spikes))
    rates.watch(lively(model))
    model.forward_segments(images(3))
    rates.leave()
    assert len(counted) == 1
    assert rates.take()["firing_rate/processing"] == pytest.approx(float(counted[0].detach().mean()))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (40, "40 s"), (800, "13 min"), (7985, "2 h 13 min"), (3599, "1 h 0 min"), (273_600, "3 d 4 h")],
)
def test_durations_are_told_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_left_is_at_the_pace_since_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([50.0, 60.0, 70.0])
    monkeypatch.setattr(time_left.time, "monotonic", lambda: next(clock))
    left = TimeLeft(13)
    assert left.after(1) == ""
    assert left.after(2) == "2 min left"
    assert left.after(3) == "2 min left"


def test_a_trace_that_cannot_be_written_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "traces").write_text("in the way")
    traces = Traces((1, 1), tmp_path / "traces")
    traces.begin_step(1)
    assert traces.end_step(1) is None
    assert f"warning: {tmp_path}/traces/steps-1-1.json cannot be written (File exists)" in capfd.readouterr().err


@pytest.mark.slow
def test_a_run_tells_where_its_time_goes(run_config: dict, tmp_path: Path) -> None:
    run_config["training"] |= {"recompute": "block_segment"}
    run_config["profiling"] = {"trace_steps": [2, 3], "peak_tflops": 1.0}
    run = tmp_path / "run"
    result = tdformer("train", write_config(run_config, tmp_path), "--run-dir", run)
    assert result.returncode == 0, result.stderr
    assert " s left" in result.stdout
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/loss" in row]
    for row in steps:
        parts = [row[f"time/{part}_s"] for part in PARTS]
        assert sum(parts) == pytest.approx(8 / row["train/images_per_s"], rel=0.2)
        assert min(parts) > 0
        assert 0 < row["train/mfu"] < row["train/hfu"] < 1.6 * row["train/mfu"]
        assert row["train/peak_memory_mb"] > 100
        assert 0 <= row["firing_rate/stage3"] <= 1
    trace = json.loads((run / "traces" / "steps-2-3.json").read_text())
    assert any("convolution" in event.get("name", "") for event in trace["traceEvents"])
    assert {path.name for path in (run / "traces").iterdir()} == {"steps-2-3.json"}


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 NVL", 835), ("NVIDIA L40S", 362), ("NVIDIA L40", None), ("NVIDIA RTX A1000", None)],
)
def test_a_gpu_is_recognised_by_whole_words_of_its_name(name: str, tflops: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong peak would give a wrong MFU without a word. An unknown device gets none."""
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    config = RunConfig.model_validate({"name": "x", "data": {"train": "a", "val": "b"}})
    assert peak_tflops(config, torch.device("cuda")) == tflops
