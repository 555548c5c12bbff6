"""Tests the estimates of `tdformer plan` against measurements and known values."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from data_pipelines.errors import UserError
from tdformer.bench.memory import saved_and_flops
from tdformer.config import RecomputePolicy, RunConfig
from tdformer.estimate.activations import estimate_activations
from tdformer.estimate.plan import NetworkSize, Plan, network_size, plan
from tdformer.estimate.traffic import Machines
from tdformer.models.tdformer import TDFormer
from tdformer.training.model_with_loss import ModelWithLoss
from tdformer.training.telemetry.flops import flops_per_image
from tests.conftest import tdformer, write_config
from tests.unit.networks import small

POLICIES = get_args(RecomputePolicy)


def run_of(**training: Any) -> RunConfig:
    training = {"micro_batch": 8, "global_batch": 96, "precision": "fp32", **training}
    data = {"train": "none", "val": "none", "image_size": 64, "train_samples": 960}
    return RunConfig(name="plan", data=data, model=small(), training=training)


@cache
def size() -> NetworkSize:
    """Count the network once for all tests: no choice of theirs about GPUs, stages and sums changes it."""
    return network_size(run_of())


def planned(machines: Machines, images_per_s: float | None = None, **training: Any) -> Plan:
    return plan(run_of(**training), machines, images_per_s, size())


def model_with_loss_of(config: RunConfig, policy: RecomputePolicy, device: str = "cpu") -> ModelWithLoss:
    model = ModelWithLoss(config.model, 0.1, policy, config.training.precision).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def measured_peak(config: RunConfig, policy: RecomputePolicy) -> int:
    """Return the peak of bytes that the CPU allocator holds during forward and backward pass."""
    model = model_with_loss_of(config, policy)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(torch.zeros(8, 3, 64, 64), torch.zeros(8, dtype=torch.int64)).backward()
    kineto: Any = profiler.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(size for _, size in sorted((event.start_ns(), event.nbytes()) for event in events)))


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_estimated_activations_are_those_measured(policy: RecomputePolicy) -> None:
    config = run_of()
    estimate = estimate_activations(config, policy, device_type="cpu")
    assert estimate.peak == pytest.approx(measured_peak(config, policy), rel=0.15)
    saved, flops = saved_and_flops(TDFormer(config.model, policy), torch.zeros(8, 3, 64, 64))
    assert estimate.kept == pytest.approx(saved, rel=0.02)
    assert flops_per_image(config, policy) == pytest.approx(flops / 8)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("policy", POLICIES)
def test_estimated_activations_are_those_of_a_gpu(policy: RecomputePolicy, precision: str) -> None:
    config = run_of(precision=precision, micro_batch=32)
    model = model_with_loss_of(config, policy, "cuda")
    model.model.use_fused_kernels()
    images, labels = torch.zeros(32, 3, 64, 64, device="cuda"), torch.zeros(32, dtype=torch.int64, device="cuda")
    model(images, labels).backward()  # The first step allocates workspaces that are kept.
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model(images, labels).backward()
    measured = torch.cuda.max_memory_allocated() - before + images.nbytes
    assert estimate_activations(config, policy).peak == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_16_bits_take_less(policy: RecomputePolicy) -> None:
    """Also where layers run again in the backward pass, most of what is alive at the peak takes half the bytes."""
    fp32, bf16 = (estimate_activations(run_of(precision=precision), policy) for precision in ("fp32", "bf16"))
    assert bf16.peak < 0.8 * fp32.peak


def test_an_estimate_changes_nothing_for_others() -> None:
    """The casts of the estimate hold within it alone."""
    estimate_activations(run_of(precision="bf16"), "block_segment")
    image, weight = torch.ones(1, 3, 4, 4), torch.ones(2, 3, 1, 1)
    assert torch.nn.functional.conv2d(image, weight).dtype == torch.float32
    assert torch.ones(1).device.type == "cpu"


@pytest.mark.slow
def test_state_is_sharded_by_stage() -> None:
    parameters = sum(parameter.numel() for parameter in TDFormer(small()).parameters())
    memory = {stage: planned(Machines(4), zero_stage=stage).memory_bytes for stage in range(4)}
    assert [memory[stage]["parameters"] for stage in range(4)] == [4 * parameters] * 3 + [5 * parameters]
    assert [memory[stage]["optimizer"] for stage in range(4)] == [8 * parameters] + [3 * parameters] * 3
    assert memory[1]["global_batch_sums"] == memory[2]["global_batch_sums"] == memory[3]["global_batch_sums"]
    many = {stage: planned(Machines(4), zero_stage=stage, global_batch=160).memory_bytes["global_batch_sums"] for stage in (1, 2)}
    assert many[1] == many[2] + 16 * parameters, "sums of this rank's five micro-batches"
    fast = planned(Machines(4), zero_stage=2, reduction="fast").memory_bytes["global_batch_sums"]
    assert fast < parameters


@pytest.mark.slow
def test_communication_is_once_per_step_below_stage_3() -> None:
    one, few = (planned(Machines(gpus), zero_stage=1).communication_bytes for gpus in (1, 4))
    assert set(one.values()) == {0}
    parameters = sum(parameter.numel() for parameter in TDFormer(small()).parameters())
    assert few["parameters_all_gather"] == 3 * parameters
    stage3 = planned(Machines(4), zero_stage=3)
    assert stage3.accumulation == 3
    assert stage3.communication_bytes["parameters_all_gather"] == 3 * parameters, "all of them are so small that they stay gathered"


def test_what_leaves_a_node() -> None:
    """A ring passes each byte on once. In an all-to-all, each of a node's two GPUs sends to both GPUs of the other node by itself."""
    parameters = sum(parameter.numel() for parameter in TDFormer(small()).parameters())
    for nodes, per_node in ((1, 4), (2, 2), (4, 1)):
        machines = Machines(4, per_node)
        exact = planned(machines, zero_stage=2, reduction="exact")
        leaves = exact.network_bytes
        assert exact.nodes == nodes
        if nodes == 1:
            assert not any(leaves.values())
        else:
            assert leaves["parameters_all_gather"] == exact.communication_bytes["parameters_all_gather"] == 3 * parameters
            assert leaves["gradients_all_to_all"] == pytest.approx(3 * 4 * parameters * per_node * (nodes - 1) / nodes)


def test_both_kinds_of_links_count() -> None:
    """The slower one decides."""
    quick, slow = 1e6, 1.0
    times = {}
    for outside, inside in itertools.product((quick, slow), repeat=2):
        found = planned(Machines(4, 2, outside, inside), images_per_s=100, zero_stage=1, reduction="fast").speed
        assert found is not None
        times[outside, inside] = found.step_s
    assert times[quick, quick] < times[quick, slow] == pytest.approx(times[slow, quick]) == pytest.approx(times[slow, slow])


def test_speed_is_the_measured_one_less_communication() -> None:
    alone = planned(Machines(1), images_per_s=100).speed
    assert alone is not None
    assert alone.images_per_s == pytest.approx(100)
    assert alone.days == pytest.approx(200 * 960 / 100 / 86_400)
    four = planned(Machines(4, gbit_per_s_inside=10), images_per_s=100).speed
    assert four is not None
    assert 300 < four.images_per_s < 400


@pytest.mark.parametrize(("stage", "in_each", "means"), [(0, False, 4), (1, False, 1), (2, True, 1), (3, True, 0)])
def test_exact_sends_float32_of_each_micro_batch_or_sums_once(stage: int, in_each: bool, means: int) -> None:
    """Four ranks with five micro-batches each. means: sent to those whose optimizers need them, in quarters of what is sent once."""
    parameters = sum(parameter.numel() for parameter in TDFormer(small()).parameters())
    sent = planned(Machines(4), zero_stage=stage, global_batch=160).communication_bytes
    once = 3 * parameters
    assert sent["gradients_all_to_all"] == (5 * once if in_each else 4 * once)
    assert sent["means_all_to_all"] == means * once // 4


@pytest.mark.parametrize("gbit_per_s", [1e-5, 1e3])
def test_both_ways_hide_what_they_send_behind_computing(gbit_per_s: float) -> None:
    """A slow link exposes all that does not fit into the passes of the first segment. A quick one hides all gradients and parameters."""
    machines = Machines(4, gbit_per_s_inside=gbit_per_s)
    plans = {name: planned(machines, 100, zero_stage=2, reduction=name) for name in ("exact", "fast")}
    exact, fast = (found.speed for found in plans.values())
    assert exact is not None
    assert fast is not None

    def seconds(name: str, purpose: str) -> float:
        return 8 * plans[name].communication_bytes[purpose] / (gbit_per_s * 1e9)

    compute_s = 96 / (4 * 100)
    room_s = compute_s * 2 / 3 / 2  # of two segments, the backward pass of the first one
    gathered_s = min(seconds("fast", "parameters_all_gather"), compute_s / 3 / 2 / 3)  # of three micro-batches, the first one
    assert fast.hidden_s == pytest.approx(min(seconds("fast", "gradients_reduce"), room_s) + gathered_s)
    sent_s = sum(seconds("fast", purpose) for purpose in plans["fast"].communication_bytes)
    assert fast.step_s == pytest.approx(compute_s + sent_s - fast.hidden_s)
    exact_s, means_s = seconds("exact", "gradients_all_to_all"), seconds("exact", "means_all_to_all")
    assert exact.hidden_s == pytest.approx(min(exact_s, 0.9 * room_s) + min(means_s, 0.1 * room_s / 3) + gathered_s)


def test_auto_is_fast_on_more_gpus_than_a_node_has() -> None:
    assert planned(Machines(4)).reduction == "exact"
    assert planned(Machines(12)).reduction == "fast"
    assert planned(Machines(4, gpus_per_node=2)).reduction == "fast"
    assert planned(Machines(12), reduction="exact").reduction == "exact"


def test_a_global_batch_that_does_not_divide_is_an_error_that_lists_what_fits() -> None:
    assert planned(Machines(1)).fitting_gpus == [1, 2, 3, 4, 6, 12]
    with pytest.raises(UserError, match="it fits 1, 2, 3, 4, 6, 12 ranks"):
        planned(Machines(5))


@pytest.mark.slow
def test_command_prints_both_ways(run_config: dict, tmp_path: Path) -> None:
    config = write_config(run_config, tmp_path)
    result = tdformer("plan", config, "--gpus", 2, "--images-per-s", 50, "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["total_memory_bytes"] == sum(printed["memory_bytes"].values())
    several = tdformer("plan", config, "--gpus", "1,2,3", "--gpus-per-node", 1, "--images-per-s", 50)
    assert several.returncode == 0, several.stderr
    assert [line.split()[:2] for line in several.stdout.splitlines()[:3]] == [["GPUs", "nodes"], ["1", "1"], ["2", "2"]]
    assert "3 GPUs: training.global_batch must be a multiple of" in several.stdout
    assert tdformer("plan", config, "--gpus", "3,5").returncode == 2, "none of them fits"
    wrong = tdformer("plan", config, "--gpus", "8,many")
    assert wrong.returncode == 2
    assert "--gpus takes a number of GPUs, or several with commas between them, such as 8,16,64; got '8,many'" in wrong.stderr
    table = tdformer("plan", config, "--gpus", 2).stdout
    assert "memory per GPU" in table
    assert "8 = 4 x 2 GPUs x 1 accumulation" in table
