"""On a GPU: the Triton kernels compute the formulas there, and networks on them are those of the plain path."""

from __future__ import annotations

import copy

import pytest
import torch

from tdformer.models.kernels import on_cuda
from tdformer.models.kernels.operators import reason_against
from tdformer.training.objective import Objective
from tests.unit.interpreted_kernels import CLOSE, SHAPES, check
from tests.unit.networks import BACKBONES, IMAGE_SIZE, images, lively, small

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_compute_the_formulas(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for carries in (False, True):
        with CUDA:
            check(shape, dtype, carries)


def test_more_rows_than_programs_take_at_once() -> None:
    """In float64: sums of so many float32 numbers differ by their order alone."""
    torch.manual_seed(0)
    with CUDA:
        check((4, 3 * 16 * on_cuda.SUM_PROGRAMS - 5, 65), torch.float64, carries=True)


def test_the_same_input_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    with CUDA:
        y_TMC, of_spikes_TMC, (v_MC, of_v_MC) = torch.randn(4, 20_000, 96), torch.randn(4, 20_000, 96), torch.randn(2, 20_000, 96)
        norm = torch.rand(4, 96) + 0.5
    first, second = (on_cuda.norm_neurons_backward(y_TMC, v_MC, *norm, of_spikes_TMC, of_v_MC, 1.0) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def trained(objective: Objective, backbone: str, device: torch.device, *, fused: bool) -> list[torch.Tensor]:
    """Loss, gradients and statistics of one pass."""
    objective = copy.deepcopy(objective).to(device)
    objective.model.use_fused_kernels(fused)
    config = objective.model.config
    frames = config.time_steps if config.backbone.in_channels == 2 else None
    x = images(2, IMAGE_SIZE[backbone], IMAGE_SIZE[backbone], frames=frames, channels=config.backbone.in_channels).double()
    loss = objective(x.to(device), torch.arange(2, device=device))
    loss.backward()
    gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    return [tensor.detach().cpu() for tensor in (loss, *gradients, *objective.buffers())]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_networks_are_the_same_function(backbone: str) -> None:
    """In float64 the ways round in other places but take no other decision: fused and plain, on the GPU and on the CPU."""
    torch.manual_seed(0)
    objective = lively(Objective(small(BACKBONES[backbone]), 0.1).double())
    assert isinstance(objective, Objective)
    fused = trained(objective, backbone, CUDA, fused=True)
    for device in (CUDA, torch.device("cpu")):
        for one, other in zip(fused, trained(objective, backbone, device, fused=False), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_kernels_that_cannot_be_compiled_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training starts, which then takes the plain path."""
    assert reason_against(CUDA) is None

    def fails(*inputs: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(on_cuda, "neurons_backward", fails)
    assert reason_against(CUDA) == "RuntimeError: Failed to find C compiler."
