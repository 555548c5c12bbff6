"""Potentials, surrogate gradients and gradients along time are those that the network itself has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from tdformer.analysis import membranes, surrogates, time_gradients
from tdformer.analysis.attention_maps import attention_maps
from tdformer.analysis.membranes import threshold
from tdformer.config import FeedbackConfig
from tdformer.distributed.context import DistContext
from tdformer.models.kernels.constants import ALPHA, TAU
from tdformer.models.neuron_state import NeuronState
from tdformer.models.neurons import LIF, SURROGATE, ParametricLIF
from tdformer.models.tdformer import TDFormer
from tests.unit.analysed import alone, parts_of
from tests.unit.networks import BACKBONES, IMAGE_SIZE, images, lively, small

N = 6


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    with alone() as context:
        yield context


def network(backbone: str = "qkformer-cifar", **changes: object) -> tuple[TDFormer, torch.Tensor]:
    torch.manual_seed(0)
    changes = {"feedback": FeedbackConfig(init_std=1.0), **changes}
    model, size = lively(TDFormer(small(backbone, **changes))), IMAGE_SIZE[backbone]
    assert isinstance(model, TDFormer)
    x = images(N, size, size)
    model.train()(x)
    return model.eval(), x


@pytest.mark.parametrize("carry", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_neurons_fire_where_their_potential_reaches_the_threshold(backbone: str, carry: bool) -> None:
    """The potentials are computed from the layers' inputs, and compared with the spikes that the layers give."""
    model, x = network(backbone, carry_membrane=carry, feedback=FeedbackConfig(init_std=1.0, processing="v3"))
    neurons = {name: module for name, module in model.named_modules() if isinstance(module, LIF | ParametricLIF)}
    potentials: dict[str, list[torch.Tensor]] = {name: [] for name in neurons}
    spikes: dict[str, list[torch.Tensor]] = {name: [] for name in neurons}
    for name, module in neurons.items():
        module.register_forward_hook(lambda module, inputs, output, name=name: spikes[name].append(output))
    with torch.no_grad(), membranes.watched(neurons, lambda name, h_TB, threshold: potentials[name].append(h_TB)):
        model(x)
    for name, module in neurons.items():
        assert len(potentials[name]) == len(spikes[name]) > 0
        h, fired = torch.cat(potentials[name]), torch.cat(spikes[name])
        clear = (h - threshold(module)).abs() > 1e-5  # rounding may decide at the threshold itself
        assert torch.equal((h >= threshold(module))[clear], fired.bool()[clear]), name
        assert clear.float().mean() > 0.25


def test_the_surrogate_is_the_one_that_neurons_train_with() -> None:
    h = torch.linspace(-2, 3, 101, requires_grad=True)
    SURROGATE(h - 1.0).sum().backward()
    assert torch.allclose(surrogates.relative_gradient(h.detach(), 1.0) * ALPHA / 4, h.grad, atol=1e-6)


def test_histograms_with_and_without_the_clamp(context: DistContext) -> None:
    model, x = network(feedback=FeedbackConfig(init_std=1.0, clamp=(0.0, 0.1)))
    found = surrogates.measure(model, parts_of(x), context)
    for kind in ("clamped", "unclamped"):
        assert sum(found[kind]["histogram"]) == pytest.approx(1)
        assert 0 < found[kind]["dead"] < 1
        assert {name.rpartition(".")[0] for name in found[kind]["dead_by_layer"]} >= {"processing"}
    assert found["clamped"] != found["unclamped"]
    assert (model.processing.lower, model.processing.upper) == (0.0, 0.1)
    model.processing.lower, model.processing.upper = -1e6, 1e6
    wide = surrogates.measure(model, parts_of(x), context)
    assert wide["clamped"] == wide["unclamped"] == found["unclamped"]


def test_the_first_segment_is_reached_through_feedback_alone_if_membranes_are_not_carried(context: DistContext) -> None:
    model, x = network(carry_membrane=False)
    norms = time_gradients.measure(model, parts_of(x), context)["norms"]
    assert norms["without feedback"]["stage3"][:2] == [0, 0]
    assert min(norms["with feedback"]["stage3"]) > 0
    assert norms["without feedback"]["stage3"][2:] == pytest.approx(norms["with feedback"]["stage3"][2:])


def test_gradients_are_those_of_the_loss_of_each_image(context: DistContext) -> None:
    model, x = network()
    found = time_gradients.measure(model, parts_of(x, batch=4), context)["norms"]["with feedback"]
    kept: list[torch.Tensor] = []
    *_, last = model.backbone.transform()
    hook = last.register_forward_hook(lambda module, inputs, output: (output.retain_grad(), kept.append(output))[2:] or None)
    torch.nn.functional.cross_entropy(model(x), torch.arange(N) % 5, reduction="sum").backward()
    hook.remove()
    expected = torch.cat([h.grad.flatten(2).norm(dim=2).mean(1) for h in kept])
    assert found["stage3"] == pytest.approx(expected.tolist(), rel=1e-4)
    assert sorted(found) == ["stage1", "stage2", "stage3"]


def test_a_plain_backbone_has_one_way(context: DistContext) -> None:
    model, x = network(feedback=None)
    assert list(time_gradients.measure(model, parts_of(x), context)["norms"]) == ["without feedback"]


@given(st.floats(-1, 3), st.floats(-1, 1))
def test_theorem_4_3(h: float, current: float) -> None:
    """A neuron of threshold 1 with a soft reset and the rectangular surrogate, by autograd."""

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, h: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(h)
            return (h >= 1).float()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * ((ctx.saved_tensors[0] - 1).abs() < 0.5)

    now = torch.tensor(h, requires_grad=True)
    v = now - Spike.apply(now)
    (v + (current - v) / TAU).backward()
    assert now.grad == time_gradients.theorem_sensitivity(now.detach(), 1.0)


def test_the_window_is_counted(context: DistContext) -> None:
    model, x = network()
    theorem = time_gradients.measure(model, parts_of(x), context)["theorem"]
    assert 0 < theorem["inside_window"] < 1
    assert theorem["sensitivity"] == pytest.approx(0.5 * (1 - theorem["inside_window"]))
    assert 0 < theorem["measured_inside"] < 0.5
    assert 0 < theorem["measured_outside"] <= 0.5


@pytest.mark.parametrize("kind", [LIF, ParametricLIF])
@given(st.floats(-3, 5).filter(lambda h: abs(h - 1) > 1e-6))
def test_the_sensitivity_of_a_neuron_is_that_of_its_backward_pass(kind: type[LIF | ParametricLIF], h: float) -> None:
    """The second current is so low that there is no second spike: then the potential that the neuron leaves is H(2)."""
    neurons, state = kind(), NeuronState()
    share = membranes.charged_share(neurons)
    x_TB = torch.tensor([[h / share], [-50.0]], dtype=torch.float64, requires_grad=True)
    neurons.double()(x_TB, state)
    (gradient,) = torch.autograd.grad(state.after[neurons].sum(), x_TB)
    expected = time_gradients.neuron_sensitivity(torch.tensor(h, dtype=torch.float64), membranes.threshold(neurons), share)
    assert float(gradient[0, 0]) / share == pytest.approx(float(expected))


@pytest.mark.parametrize("backbone", ["qkformer-cifar", "spikformer-cifar", "sdt-cifar"])
def test_attention_maps_are_rates_and_gradients_of_each_pass(backbone: str) -> None:
    model, x = network(backbone)
    found = attention_maps(model, x)
    *_, block = model.backbone.transform()
    kept: list[torch.Tensor] = []
    block.attn.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        answers = model.forward_segments(x).argmax(2)
    rates = torch.stack([spikes.mean((0, 2)) for spikes in kept])
    assert torch.equal(found.answers_NB, answers)
    own = (rates / rates.abs().amax((0, 2, 3), keepdim=True)).nan_to_num()  # an attention that is silent
    assert torch.allclose(found.rate_NBHW, own, atol=1e-6)
    cams = found.gradient_NBHW
    assert cams.shape == own.shape
    assert cams.min() >= 0
    assert cams.max() == 1


def test_what_cannot_be_measured_is_refused(context: DistContext) -> None:
    with pytest.raises(UserError, match="no top-down path, and so no clamp"):
        surrogates.measure(TDFormer(small(feedback=None)), [], context)
    with pytest.raises(UserError, match="one time step"):
        time_gradients.measure(TDFormer(small(time_steps=1, segments=1)), [], context)
