"""On a GPU: the Triton kernels compute the formulas there, and networks on them are those of the plain path."""

from __future__ import annotations

import copy

import pytest
import torch

from tdformer.config import BackboneConfig
from tdformer.models.kernels import attention, on_cuda
from tdformer.models.kernels.operators import reason_against
from tdformer.models.tdformer import TDFormer
from tests.unit.interpreted_kernels import CLOSE, SHAPES, check, check_attention
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_computes_the_formulas(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with CUDA:
        for shape, heads in (((64, 196, 768), 12), ((3, 576, 128), 1), ((2, 33, 32), 2)):
            check_attention(shape, heads, dtype)


def test_attention_under_autocast_gives_the_bits_of_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's sums are whole numbers, which half precision holds."""
    torch.manual_seed(0)
    model = lively(TDFormer(small(BackboneConfig(embed_dims=64, num_heads=1, depths=(1, 1, 2))))).to(CUDA)
    model.use_fused_kernels()
    x, logits = images(4, 64, 64).to(CUDA), []
    for taken in (True, False):
        if not taken:
            monkeypatch.setattr(attention, "takes", lambda q_TBCN, heads: False)
        with torch.autocast("cuda", torch.bfloat16):
            logits.append(copy.deepcopy(model).forward_segments(x))
    assert torch.equal(*logits)


def trained(model: TDFormer, x: torch.Tensor, *, fused: bool) -> list[torch.Tensor]:
    """Logits, gradients and statistics of one pass, on the device of x. Not with the loss of ModelWithLoss, which is float32."""
    model = copy.deepcopy(model).to(x.device)
    model.use_fused_kernels(fused)
    logits = model.forward_segments(x)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=torch.float64, device=x.device).view_as(logits)).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [tensor.detach().cpu() for tensor in (logits, *gradients, *model.buffers())]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_networks_are_the_same_function(backbone: str) -> None:
    """In float64 the ways round in other places but take no other decision: fused and plain, on the GPU and on the CPU."""
    torch.manual_seed(0)
    config, size = small(BACKBONES[backbone]), IMAGE_SIZE[backbone]
    model = TDFormer(config).double()
    lively(model)
    frames = config.time_steps if config.backbone.in_channels == 2 else None
    x = images(2, size, size, frames=frames, channels=config.backbone.in_channels).double()
    results = [trained(model, x.to(CUDA), fused=True), trained(model, x.to(CUDA), fused=False), trained(model, x, fused=False)]
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def test_kernels_that_cannot_be_compiled_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training starts, which then takes the plain path."""
    assert reason_against(CUDA) is None

    def fails(*inputs: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(on_cuda, "norm_neurons_backward", fails)
    assert reason_against(CUDA) == "RuntimeError: Failed to find C compiler."
