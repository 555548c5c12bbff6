"""Fused kernels beside the plain path: values, gradients and statistics, for every layout that the networks hand them.

Compiled for real (the first run takes a minute, later ones read torch's cache). In float64 the two paths round in other places but
take no other decision, so that all is equal to 1e-9; in float32 a potential may fall on the other side of its threshold.
"""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from torch import nn

from tdformer.config import RecomputePolicy
from tdformer.estimate.activations import estimate_activations
from tdformer.models.channel_maps import ChannelConv2d, ChannelLinear, StridedChannelConv2d, channels_are_last, map_channels
from tdformer.models.kernels.attention import attention
from tdformer.models.kernels.operators import MOST_STEPS
from tdformer.models.layers import SpikingLayer
from tdformer.models.neuron_state import NeuronState
from tdformer.models.neurons import LIF
from tdformer.training.kernel_choice import are_wanted
from tdformer.training.model_with_loss import ModelWithLoss
from tests.unit.networks import BACKBONES, IMAGE_SIZE, images, lively, small

SHAPES = ((2, 3, 4, 5, 5), (2, 2, 3, 7), (2, 2, 6, 4, 1), (2, 4, 5))
"""Two time steps, as all tests here: a kernel is compiled for each number of steps, in seconds. Other numbers have a case of their own."""
CLOSE = {torch.float64: {"rtol": 1e-9, "atol": 1e-10}, torch.float32: {"rtol": 1e-5, "atol": 1e-6}}


def both_ways(lif: LIF, x: torch.Tensor, norm: nn.Module | None, v: torch.Tensor | None) -> list[list[torch.Tensor]]:
    """Return the results of the plain path, then of the fused one: spikes, potentials, gradients of x, v and BatchNorm, statistics."""
    results = []
    for is_fused in (False, True):
        own, lif.fused = copy.deepcopy(norm), is_fused
        inputs = [tensor.detach().requires_grad_() for tensor in (x, v) if tensor is not None]  # no clones: those have layouts of their own
        neuron_state = NeuronState({lif: inputs[1]} if v is not None else None)
        spikes = lif(inputs[0], neuron_state, own)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(tensor.shape, dtype=tensor.dtype, generator=generator) for tensor in (spikes, neuron_state.after[lif])]
        (spikes * weights[0]).sum().backward(retain_graph=True)
        (neuron_state.after[lif] * weights[1]).sum().backward()
        gradients = [tensor.grad for tensor in (*inputs, *(own.parameters() if own else ())) if tensor.grad is not None]
        results.append([spikes, neuron_state.after[lif], *gradients, *(own.buffers() if own else ())])
    return results


@pytest.mark.slow
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("carries", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_neurons_alone(shape: tuple[int, ...], carries: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, v = torch.randn(shape, dtype=dtype) * 2, torch.rand(shape[1:], dtype=dtype) if carries else None
    plain, own = both_ways(LIF(0.5), x, None, v)
    assert torch.equal(plain[0], own[0])
    assert torch.equal(plain[1], own[1])
    for one, other in zip(plain, own, strict=True):
        torch.testing.assert_close(one, other, **CLOSE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_other_numbers_of_steps(steps: int) -> None:
    test_neurons_alone((steps, 2, 5), carries=steps == 1, dtype=torch.float64)
    test_batch_norm_and_neurons((steps, 2, 6, 4, 1), torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_batch_norm_and_neurons(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = (nn.BatchNorm2d if len(shape) == 5 else nn.BatchNorm1d)(shape[2]).to(dtype)
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.uniform_(norm.bias)
    x, v = torch.randn(shape, dtype=dtype) * 3 + 1, torch.rand(shape[1:], dtype=dtype)
    for one, other in zip(*both_ways(LIF(), x, norm, v), strict=True):
        torch.testing.assert_close(one, other, **CLOSE[dtype])


def layouts() -> dict[str, torch.Tensor]:
    """Return tensors of one shape, in each memory layout that networks use and in some that they do not use."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 4, 5) * 2
    last = images.contiguous(memory_format=torch.channels_last)
    return {
        "contiguous": images.unflatten(0, (2, 2)),
        "channels_last": last.unflatten(0, (2, 2)),
        "image at every step": images[:2].expand(2, 2, 3, 4, 5),
        "image at every step, channels_last": last[:2].expand(2, 2, 3, 4, 5),
        "some channels": torch.randn(2, 2, 5, 4, 5)[:, :, 1:4] * 2,
        "some columns": torch.randn(2, 2, 3, 4, 9)[..., 2:7] * 2,
        "every other step": torch.randn(4, 2, 3, 4, 5)[::2] * 2,
    }


@pytest.mark.slow
@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("carries", [False, True])
def test_memory_layouts(layout: str, carries: bool) -> None:
    """Gradients come in another layout than values: contiguous."""
    x, v = layouts()[layout], torch.rand(2, 3, 4, 5) if carries else None
    for norm in (None, nn.BatchNorm2d(3)):
        for one, other in zip(*both_ways(LIF(), x, norm, v), strict=True):
            torch.testing.assert_close(one, other, **CLOSE[torch.float32])


@pytest.mark.slow
def test_spikes_lie_in_memory_as_currents_do_and_after_batch_norm_in_channels_last() -> None:
    lif = LIF()
    lif.fused = True
    for name in ("contiguous", "channels_last"):
        x = layouts()[name]
        assert lif(x, NeuronState()).stride() == x.stride()
        assert channels_are_last(lif(x, NeuronState(), nn.BatchNorm2d(3)).flatten(0, 1))
    assert channels_are_last(lif(layouts()["image at every step, channels_last"], NeuronState()).flatten(0, 1))
    assert channels_are_last(lif(torch.randn(2, 2, 4, 7), NeuronState(), nn.BatchNorm1d(4)).flatten(0, 1))


@pytest.mark.slow
def test_evaluation_and_statistics_left_alone() -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(2, 4, 3, 6) * 2, nn.BatchNorm1d(3)
    norm(torch.randn(8, 3, 6) + 1)
    for mode in ("eval", "untracked"):
        norm.train(mode == "untracked")
        norm.track_running_stats = mode != "untracked"
        for one, other in zip(*both_ways(LIF(), x, norm, None), strict=True):
            torch.testing.assert_close(one, other, **CLOSE[torch.float32])


@pytest.mark.slow
def test_bfloat16_currents_are_not_rounded_again() -> None:
    """Under autocast BatchNorm's input is bfloat16: what is fused equals the float32 arithmetic on it, spike by spike."""
    torch.manual_seed(0)
    y, norm, lif = torch.randn(2, 2, 8, 9).bfloat16(), nn.BatchNorm1d(8), LIF()
    lif.fused = True
    spikes, expected = lif(y, NeuronState(), copy.deepcopy(norm)), lif(y.float(), NeuronState(), norm)
    assert spikes.dtype == torch.bfloat16
    assert torch.equal(spikes.float(), expected)


def test_more_steps_than_a_kernel_takes_run_step_by_step() -> None:
    x = torch.randn(MOST_STEPS + 1, 2, 3, 4)
    for norm in (None, nn.BatchNorm1d(3)):
        plain, own = both_ways(LIF(), x, norm, None)
        assert all(torch.equal(one, other) for one, other in zip(plain, own, strict=True))


def run(model_with_loss: ModelWithLoss, backbone: str, is_fused: bool, dtype: torch.dtype) -> tuple[torch.Tensor, list, list]:
    model_with_loss = copy.deepcopy(model_with_loss)
    model_with_loss.model.use_fused_kernels(is_fused)
    config = model_with_loss.model.config
    frames = config.time_steps if config.backbone.in_channels == 2 else None
    x = images(2, IMAGE_SIZE[backbone], IMAGE_SIZE[backbone], frames=frames, channels=config.backbone.in_channels).to(dtype)
    loss = model_with_loss(x, torch.arange(2))
    loss.backward()
    return loss, [p.grad for p in model_with_loss.parameters() if p.grad is not None], list(model_with_loss.buffers())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_networks_are_the_same_function(backbone: str) -> None:
    torch.manual_seed(0)
    model_with_loss = lively(ModelWithLoss(small(BACKBONES[backbone].model_copy(update={"drop_path": 0.3})), 0.1).double())
    results = []
    for is_fused in (False, True):
        torch.manual_seed(1)
        results.append(run(model_with_loss, backbone, is_fused, torch.float64))
    (loss, gradients, buffers), (other_loss, other_gradients, other_buffers) = results
    torch.testing.assert_close(loss, other_loss, **CLOSE[torch.float64])
    for one, other in zip(gradients + buffers, other_gradients + other_buffers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [policy for policy in get_args(RecomputePolicy) if policy != "none"])
def test_recompute_gives_the_same_bits(policy: RecomputePolicy) -> None:
    results = []
    policies: tuple[RecomputePolicy, ...] = ("none", policy)
    for own in policies:
        torch.manual_seed(0)
        results.append(run(lively(ModelWithLoss(small(), 0.1, own)), "qkformer-imagenet", True, torch.float32))
    (loss, gradients, buffers), (other_loss, other_gradients, other_buffers) = results
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(one, other) for one, other in zip(gradients + buffers, other_gradients + other_buffers, strict=True))


@pytest.mark.parametrize("channels", [4, 12, 16])
def test_a_strided_map_of_few_channels_is_torchs(channels: int) -> None:
    """The map avoids an error of oneDNN: a strided convolution of 4 channels in channels_last ends the process on a CPU with AVX2."""
    torch.manual_seed(0)
    layer, x, y_gradient = StridedChannelConv2d(channels, 8, stride=2), torch.randn(4, channels, 32, 32), torch.randn(4, 8, 16, 16)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        own_x = x.contiguous(memory_format=memory_format).requires_grad_()
        y = layer(own_x)
        assert y.is_contiguous(memory_format=memory_format)
        results.append((y, *torch.autograd.grad(y, [own_x, layer.weight], y_gradient)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_only_the_input_of_batch_norm_is_kept() -> None:
    layer = SpikingLayer(ChannelConv2d(4, 8, bias=False))
    x, kept = torch.randn(6, 4, 5, 5).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 3)), {}
    for is_fused in (False, True):
        layer.neurons.fused = is_fused
        own: dict[int, int] = {}

        def see(tensor: torch.Tensor, own: dict[int, int] = own) -> torch.Tensor:
            own[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
            spikes = layer(x, NeuronState())
        kept[is_fused] = sum(size for size in own.values() if size >= spikes.nbytes)
    assert kept == {False: 2 * spikes.nbytes, True: spikes.nbytes}


@pytest.mark.slow
def test_fused_kernels_keep_less_in_the_estimate() -> None:
    from tests.unit.test_plan import run_of

    config = run_of()
    on_gpu, on_cpu = (estimate_activations(config, "none", device_type=device).kept for device in ("cuda", "cpu"))
    assert on_gpu < 0.85 * on_cpu


def test_what_auto_means() -> None:
    assert [are_wanted("auto", device) for device in ("cuda", "cpu")] == [True, False]
    assert [are_wanted(kernels, "cpu") for kernels in ("fused", "plain")] == [True, False]


def pixels_below_each_other(x: torch.Tensor) -> torch.Tensor:
    """Return the same values in channels_last, for three axes or four."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def mapped(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, of_y: torch.Tensor) -> list[torch.Tensor]:
    """The result of a map, and the gradients of input, weight and bias as they come out of it (.grad would give them a layout)."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    y = map_channels(*inputs, *([None] if bias is None else []))
    return [y, *torch.autograd.grad(y, inputs, of_y)]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 6, 4), (3, 5, 4, 6), (1, 8, 3, 3)])
def test_maps_over_channels_are_the_same_in_both_layouts_and_keep_them(shape: tuple[int, ...], dtype: torch.dtype, biased: bool) -> None:
    torch.manual_seed(0)
    x, of_y = torch.randn(shape, dtype=dtype), torch.randn(shape[0], 4, *shape[2:], dtype=dtype)
    weight = torch.randn(4, shape[1], *[1] * (len(shape) - 2), dtype=dtype)
    bias = torch.randn(4, dtype=dtype) if biased else None
    last = mapped(pixels_below_each_other(x), weight, bias, pixels_below_each_other(of_y))
    first = mapped(x, weight, bias, of_y)
    for one, other in zip(first, last, strict=True):
        torch.testing.assert_close(one, other, **CLOSE[dtype])
    assert [channels_are_last(tensor) for tensor in last[:2]] == [True, True]
    assert [tensor.is_contiguous() for tensor in first[:2]] == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_fused_kernels_every_synapse_is_given_channels_last(backbone: str) -> None:
    """Every synapse would otherwise make a copy of its own."""
    model_with_loss = lively(ModelWithLoss(small(BACKBONES[backbone]), 0.1))
    wrong: list[str] = []

    def see(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if min(inputs[0].shape[1], inputs[0].shape[2:].numel()) > 1 and not channels_are_last(inputs[0]):
                wrong.append(f"{name} {list(inputs[0].shape)} {inputs[0].stride()}")

        return hook

    for name, module in model_with_loss.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | ChannelLinear):
            module.register_forward_pre_hook(see(name))
    run(model_with_loss, backbone, True, torch.float32)
    assert wrong == []


@pytest.mark.slow
def test_attention_in_channels_last_is_attention() -> None:
    """The function around the kernel, on the formulas that the kernel is tested against: values and gradients, no copies."""
    torch.manual_seed(0)
    x = [(torch.rand(2, 3, 10, 64) < 0.3).double().transpose(2, 3).requires_grad_() for _ in range(3)]
    attended = attention(*x, 4, 0.125)
    q, k, v = (each.unflatten(2, (4, 16)).transpose(-2, -1) for each in x)
    expected = (q @ (k.transpose(-2, -1) @ v) * 0.125).transpose(-2, -1).flatten(2, 3)
    assert channels_are_last(attended.flatten(0, 1))
    torch.testing.assert_close(attended, expected, **CLOSE[torch.float64])
    of_y = torch.randn(2, 3, 10, 64, dtype=torch.float64).transpose(2, 3)
    for one, other in zip(torch.autograd.grad(attended, x, of_y), torch.autograd.grad(expected, x, of_y), strict=True):
        torch.testing.assert_close(one, other, **CLOSE[torch.float64])
        assert channels_are_last(one.flatten(0, 1))
