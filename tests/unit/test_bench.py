"""Tests the memory bench: what it counts, and how it prints it."""

from __future__ import annotations

import json

import pytest
import torch

from tdformer.bench.memory import REFERENCE, measure
from tests.conftest import tdformer
from tests.unit.networks import small


@pytest.mark.slow
def test_memory_rows_are_the_policies_and_the_reference() -> None:
    rows = list(measure("mine", small(), 64, [2, 4], peak=True))
    assert [(row.model, row.policy, row.time_steps, row.segments) for row in rows] == [
        *(("mine", policy, steps, 2) for steps in (2, 4) for policy in ("none", "segment", "block", "block_segment")),
        (REFERENCE, "none", 2, 1),
        (REFERENCE, "none", 4, 1),
    ]
    kept = {(row.model, row.policy, row.time_steps): row for row in rows}
    for steps in (2, 4):
        none = kept["mine", "none", steps]
        assert none.flops_ratio == 1
        assert 1.3 < kept["mine", "block_segment", steps].flops_ratio < 1.45
        assert kept["mine", "block", steps].flops_ratio > kept["mine", "block_segment", steps].flops_ratio
        for policy in ("segment", "block", "block_segment"):
            assert kept["mine", policy, steps].saved_mb_per_image < none.saved_mb_per_image / 4
            assert kept["mine", policy, steps].peak_mb_per_image < none.peak_mb_per_image
        assert none.peak_mb_per_image > 0.9 * none.saved_mb_per_image
        assert kept[REFERENCE, "none", steps].saved_mb_per_image > none.saved_mb_per_image
    assert kept["mine", "none", 4].saved_mb_per_image > 1.7 * kept["mine", "none", 2].saved_mb_per_image


def test_saved_bytes_are_counted_once_for_each_storage() -> None:
    """The network saves known tensors: y = x * w saves x and w. The parameter w is not counted, and views of x add nothing."""
    from tdformer.bench.memory import saved_and_flops

    class Known(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.w + x.flatten()[0] * self.w + (x @ torch.ones(8, 8)) * self.w

    saved, flops = saved_and_flops(Known(), torch.ones(2, 8))
    assert saved == (2 * 8 + 2 * 8) * 4
    assert flops == 2 * 2 * 8 * 8


@pytest.mark.slow
def test_memory_command_prints_json() -> None:
    result = tdformer("bench", "memory", "--model", "tdformer_sdt2_256", "--time-steps", "2", "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert len(rows) == 4
    assert {"model", "policy", "time_steps", "segments", "saved_mb_per_image", "flops_ratio"} <= rows[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--time-steps", "3"], "time_steps must be a multiple of segments, got 3 time steps and 2 segments"),
        (["--image-size", "30"], "--image-size must be a multiple of 4, the network's stride, got 30"),
        (["--model", "tdformer_std2_256"], "did you mean tdformer_sdt2_256"),
    ],
)
def test_wrong_options_are_errors_before_anything_is_measured(options: list[str], sentence: str) -> None:
    options = options if "--model" in options else ["--model", "tdformer_sdt2_256", *options]
    result = tdformer("bench", "memory", *options)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
