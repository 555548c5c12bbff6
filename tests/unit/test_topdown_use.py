"""The use of the top-down path is measured on paths that are known to be used, or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from data_pipelines.errors import UserError
from tdformer.analysis.topdown_use import NOTHING, SILENT, _controlled, _of_another_class, _silenced, measure
from tdformer.config import FeedbackConfig
from tdformer.distributed.context import DistContext
from tdformer.models.attention import ControlledAttention
from tdformer.models.tdformer import TDFormer
from tests.unit.analysed import alone, parts_of
from tests.unit.networks import images, lively, small

N = 24


@pytest.fixture(scope="module")
def context() -> Iterator[DistContext]:
    with alone() as context:
        yield context


def network(control: str = "cm1", init_std: float = 3.0, backbone: str = "qkformer-cifar") -> tuple[TDFormer, torch.Tensor]:
    torch.manual_seed(0)
    model = lively(TDFormer(small(backbone, feedback=FeedbackConfig(control=control, init_std=init_std))))
    assert isinstance(model, TDFormer)
    x = images(N)
    model.train()(x)
    with torch.no_grad():
        model.backbone.head.bias -= model.eval()(x).mean(0)  # else all images get the same answer
    return model, x


@pytest.mark.parametrize(
    ("control", "backbone"),
    [("cm1", "qkformer-cifar"), ("cm1", "sdt-cifar"), ("cm2", "qkformer-cifar"), ("cm2", "spikformer-cifar"), ("cm3", "sdt-cifar")],
)
def test_currents_and_rates_are_those_of_the_pass(context: DistContext, control: str, backbone: str) -> None:
    """They are computed again here, from the tensors of one pass in one batch."""
    model, x = network(control, backbone=backbone)
    seen: dict[str, list[torch.Tensor]] = {"spikes": [], "features": [], "topdown": [], "target": []}
    attention = next(module for module in model.modules() if isinstance(module, ControlledAttention))
    target = {"cm1": "k.synapse", "cm2": "v.synapse", "cm3": ""}[control]
    model.processing.register_forward_hook(lambda module, inputs, spikes: seen["features"].append(inputs[0]))
    model.processing.register_forward_hook(lambda module, inputs, spikes: seen["spikes"].append(spikes))
    attention.control.register_forward_hook(lambda module, inputs, current: seen["topdown"].append(current))
    attention.get_submodule(target).register_forward_hook(
        lambda module, inputs, current: seen["target"].append(inputs[0] if control == "cm3" else current)
    )
    with torch.no_grad():
        model(x)
    found = measure(model, parts_of(x, N), context)
    name, currents = next(iter(found["currents"].items()))
    assert model.get_submodule(name) is attention
    assert found["firing_rate"] == pytest.approx(float(seen["spikes"][0].mean()))
    assert currents["topdown"] == pytest.approx(float(seen["topdown"][0].square().mean().sqrt()), rel=1e-5)
    assert currents["bottom_up"] == pytest.approx(float(seen["target"][1].square().mean().sqrt()), rel=1e-5)
    spatial = model.processing.spatial_map(seen["features"][0])
    assert found["map"]["below"] == pytest.approx(float((spatial < 0).double().mean()))
    assert sum(found["map"].values()) == pytest.approx(1)


def test_a_path_without_weights_changes_no_answer(context: DistContext) -> None:
    model, x = network(init_std=0.0)
    found = measure(model, parts_of(x), context)
    del found["answers"][SILENT]
    for answer in found["answers"].values():
        assert (answer["agreement"], answer["change"], answer["change_low"], answer["change_high"]) == (100, 0, 0, 0)
    assert all(currents["topdown"] == 0 for currents in found["currents"].values())


def test_a_path_that_decides_is_found_to(context: DistContext) -> None:
    """The labels are the network's own answers, so it is always right, and every change of an answer is a loss."""
    model, x = network("cm3")
    parts = parts_of(x, N)
    parts[0].labels_B.copy_(model(x).argmax(1))
    answers = measure(model, parts, context)["answers"]
    assert answers[NOTHING]["top1"] == 100
    assert set(answers) == {NOTHING, "none", "of another image", "of another class", "random, as many", "everywhere", SILENT}
    for name in set(answers) - {NOTHING}:
        assert answers[name]["agreement"] == answers[name]["top1"] < 100, name
        assert answers[name]["change"] == pytest.approx(answers[name]["top1"] - 100)
        assert answers[name]["change_low"] < answers[name]["change"] < answers[name]["change_high"]


@pytest.mark.parametrize("control", ["cm1", "cm2", "cm3"])
def test_the_controlled_attention_is_silenced_in_controlled_passes_alone(control: str) -> None:
    model, x = network(control)
    attention = next(iter(_controlled(model).values()))
    plain: list[torch.Tensor] = []
    silenced: list[torch.Tensor] = []
    for given, changed in ((plain, nullcontext()), (silenced, _silenced(model))):
        with torch.no_grad(), changed:
            hook = attention.register_forward_hook(lambda module, inputs, output, given=given: given.append(output))
            model(x)
            hook.remove()
    assert torch.equal(silenced[0], plain[0])
    assert len(silenced) == model.segments > 1
    assert not any(output.any() for output in silenced[1:])


def test_the_network_is_left_as_it_was(context: DistContext) -> None:
    model, x = network()
    before, hooks = model(x), [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    measure(model, parts_of(x), context)
    assert torch.equal(model(x), before)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def test_another_class_is_never_the_own_one() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    assert _of_another_class(labels).tolist() == [2, 2, 5, 5, 5, 0]
    assert _of_another_class(torch.tensor([1, 1])).tolist() == [0, 1], "there is none"


def test_samples_without_another_class_are_left_out(context: DistContext) -> None:
    model, x = network("cm3")
    mixed, alike = parts_of(x, N // 2)
    alike.labels_B.fill_(1)
    answers = measure(model, [mixed, alike], context)["answers"]
    assert answers.pop("of another class")["samples"] == N // 2
    assert {answer["samples"] for answer in answers.values()} == {N}


def test_networks_without_the_path_are_refused(context: DistContext) -> None:
    with pytest.raises(UserError, match="has no top-down path"):
        measure(TDFormer(small(feedback=None)), [], context)
    with pytest.raises(UserError, match="has one segment"):
        measure(TDFormer(small(segments=1)), [], context)
