"""Tests the step bench: its candidates, what its rows hold, and that time counts for the right category. No speed is asserted."""

from __future__ import annotations

import json
import time

import pytest
import torch
from torch import nn

from tdformer.bench.candidates import CANDIDATES, network
from tdformer.bench.ceilings import measure_ceilings
from tdformer.bench.op_categories import optimizer_range, time_by_category
from tdformer.bench.peak_memory import peak_bytes
from tdformer.bench.reference import make_reference
from tests.conftest import tdformer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def printed() -> dict:
    """The JSON that the command prints for the smallest networks, with the kernels that need no compiling."""
    sizes = ["--embed-dims", "64", "--image-size", "32", "--batch", "4", "--rounds", "2", "--kernels", "plain"]
    result = tdformer("bench", "step", *sizes, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_all_candidates_are_measured_beside_the_reference(printed: dict) -> None:
    rows = {row["model"]: row for row in printed["rows"]}
    assert tuple(rows) == CANDIDATES
    for row in rows.values():
        assert row["seconds_min"] <= row["seconds_per_step"] <= row["seconds_max"]
        slowest, fastest = row["batch"] / row["seconds_max"], row["batch"] / row["seconds_min"]
        assert slowest * 0.999 <= row["images_per_s"] <= fastest * 1.001  # the median of another quantity than that of the seconds
        assert row["tflops"] == pytest.approx(row["gflops_per_image"] * row["images_per_s"] / 1e3)
        assert row["mfu"] == pytest.approx(row["tflops"] / printed["ceilings"]["matmul_tflops"])
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["peak_mb"] > row["batch"] * row["peak_mb_per_image"] > 0
    assert rows["spikingjelly-qkformer"]["ratio_to_reference"] == 1
    assert rows["tdformer-recompute"]["gflops_per_image"] == rows["tdformer"]["gflops_per_image"] > rows["backbone"]["gflops_per_image"]
    assert rows["tdformer-recompute"]["peak_mb_per_image"] < rows["tdformer"]["peak_mb_per_image"] / 2


@pytest.mark.slow
def test_the_conditions_name_the_machine_and_what_was_run(printed: dict) -> None:
    conditions = printed["conditions"]
    assert conditions["torch"] == torch.__version__.partition("+")[0]
    assert {"device", "cores", "threads", "load_average", "spikingjelly", "triton", "commit"} <= conditions.keys()
    asked = {"embed_dims": 64, "image_size": 32, "precision": "fp32", "kernels": "plain", "rounds": 2, "time_steps": 4, "segments": 2}
    assert asked.items() <= conditions.items()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--embed-dims", "100"], "--embed-dims must be a multiple of 64, as heads have 64 channels, got 100"),
        (["--image-size", "40"], "--image-size must be a multiple of 16, the network's stride, got 40"),
        (["--time-steps", "3"], "time_steps must be a multiple of segments, got 3 time steps and 2 segments"),
        (["--model", "resnet"], "the candidates are backbone, tdformer, spikingjelly-qkformer"),
        (["--device", "cuda"], "torch finds no CUDA device here"),
    ],
)
def test_wrong_options_are_errors_of_one_sentence(options: list[str], sentence: str) -> None:
    result = tdformer("bench", "step", *options, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_the_reference_has_the_same_size() -> None:
    """The two differ in biases alone: the patch convolutions of spikingjelly have some, and its attention has one linear map for all."""
    config = network(384, 96, 4, 1)
    own, reference = (sum(p.numel() for p in made.parameters()) for made in (_backbone(config), make_reference(config, 4)))
    assert own == pytest.approx(reference, rel=0.001)


def _backbone(config) -> nn.Module:  # type: ignore[no-untyped-def]
    from tdformer.models.backbones.qkformer import QKFormer

    return QKFormer(config.backbone, config.num_classes, config.time_steps)


class SlowBatchNorm(nn.BatchNorm1d):
    """A BatchNorm that is slow in both passes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Sleep.apply(super().forward(x))


class Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        time.sleep(0.1)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def,override]
        time.sleep(0.2)
        return gradient


def test_time_of_both_passes_counts_for_the_category_of_the_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), SlowBatchNorm(4), nn.ReLU())
    x = torch.randn(8, 4)

    def step() -> None:
        model(x).sum().backward()
        with optimizer_range():
            time.sleep(0.01)

    step()
    shares = time_by_category(step, model, CPU)
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "batch_norm"
    assert shares["batch_norm"] > 0.8
    assert shares["optimizer"] > shares["convolution"] > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model)


def test_peak_counts_what_is_allocated_at_once() -> None:
    def action() -> torch.Tensor:
        first = torch.empty(1_000_000)
        del first
        return torch.empty(1_500_000) + torch.empty(1_500_000)

    assert peak_bytes(action, CPU) == pytest.approx(3 * 6_000_000, rel=0.01)


@pytest.mark.slow
def test_ceilings_are_those_of_a_computer() -> None:
    ceilings = measure_ceilings(CPU, "fp32")
    assert 1e-3 < ceilings.matmul_tflops < 1e3
    assert 0.1 < ceilings.copy_gb_per_s < 1e5
