"""Recompute changes what is kept, and no bit of what is computed."""

from __future__ import annotations

import gc
import itertools
import re
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdformer.config import FeedbackConfig, ModelConfig, RecomputePolicy
from tdformer.models.checkpointing.activation_checkpointing import _Unit
from tdformer.models.tdformer import TDFormer
from tdformer.training.model_with_loss import ModelWithLoss
from tests.unit.networks import BACKBONES, IMAGE_SIZE, images, lively, small

KINDS = ("qkformer-imagenet", "qkformer-cifar", "spikformer-imagenet", "spikformer-cifar", "sdt-imagenet")
POLICIES = [policy for policy in get_args(RecomputePolicy) if policy != "none"]
CONTROLS, PROCESSINGS = ("cm1", "cm2", "cm3"), ("v1", "v2", "v3", "v4")
Results = dict[str, torch.Tensor | None]


def two_steps(config: ModelConfig, policy: RecomputePolicy, x: torch.Tensor, autocast: bool = False) -> Results:
    """Two training passes, gradients accumulating: losses, gradients, statistics, and the random state that is left."""
    torch.manual_seed(0)
    model_with_loss = ModelWithLoss(config, label_smoothing=0.1, recompute=policy)
    lively(model_with_loss)
    results: Results = {}
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model_with_loss(x, torch.arange(x.shape[-4]))
        loss.backward()
        results[f"loss {step}"] = loss.detach()
    results |= {name: parameter.grad for name, parameter in model_with_loss.named_parameters()}
    return results | dict(model_with_loss.named_buffers()) | {"random state": torch.get_rng_state()}


def different(one: Results, other: Results) -> list[str]:
    def same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
        return a is b if a is None or b is None else torch.equal(a, b)

    assert one.keys() == other.keys()
    return [name for name in one if not same(one[name], other[name])]


def selection() -> list[tuple[str, str, str, str]]:
    """Return combinations of backbone, control module, processing module and policy in which each pair of two values is there."""
    return [
        (backbone, CONTROLS[(i + j) % len(CONTROLS)], processing, POLICIES[(i + 2 * j) % len(POLICIES)])
        for i, backbone in enumerate(KINDS)
        for j, processing in enumerate(PROCESSINGS)
    ]


def test_the_selection_holds_every_pair() -> None:
    factors = (KINDS, CONTROLS, PROCESSINGS, POLICIES)
    for one, other in itertools.combinations(range(len(factors)), 2):
        tried = {(row[one], row[other]) for row in selection()}
        assert tried == set(itertools.product(factors[one], factors[other]))


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "control", "processing", "policy"), selection())
def test_every_variant_trains_every_weight_and_recomputes_to_the_same_bits(
    backbone: str, control: str, processing: str, policy: RecomputePolicy
) -> None:
    config = small(backbone, feedback=FeedbackConfig(control=control, processing=processing, init_std=0.3))  # type: ignore[arg-type]
    x = images(4, IMAGE_SIZE[backbone], IMAGE_SIZE[backbone])
    kept = two_steps(config, "none", x)
    frozen = {f"model.{name}" for name, parameter in TDFormer(config).named_parameters() if not parameter.requires_grad}
    assert [name for name, value in kept.items() if name not in frozen and (value is None or not value.any())] == []
    assert different(two_steps(config, policy, x), kept) == []


@pytest.mark.slow
@given(
    backbone=st.sampled_from(sorted(BACKBONES)),
    policy=st.sampled_from(POLICIES),
    control=st.sampled_from(CONTROLS),
    processing=st.sampled_from(PROCESSINGS),
    blocks=st.sampled_from(["all", (1,)]),
    segments=st.integers(1, 3),
    steps_per_segment=st.integers(1, 2),
    carry=st.booleans(),
    drop_path=st.sampled_from([0.0, 0.4]),
    frames=st.booleans(),
    autocast=st.booleans(),
    sides=st.tuples(st.sampled_from([16, 32, 48]), st.sampled_from([32, 48])),
)
@settings(max_examples=25)
def test_any_network_recomputes_to_the_same_bits(
    backbone: str,
    policy: RecomputePolicy,
    control: str,
    processing: str,
    blocks: object,
    segments: int,
    steps_per_segment: int,
    carry: bool,
    drop_path: float,
    frames: bool,
    autocast: bool,
    sides: tuple[int, int],
) -> None:
    time_steps = segments * steps_per_segment
    config = small(
        BACKBONES[backbone].model_copy(update={"drop_path": drop_path}),
        time_steps=time_steps,
        segments=segments,
        carry_membrane=carry,
        feedback=FeedbackConfig(control=control, processing=processing, blocks=blocks, init_std=0.3),  # type: ignore[arg-type]
    )
    x = images(3, *sides, frames=time_steps if frames else None)
    assert different(two_steps(config, policy, x, autocast), two_steps(config, "none", x, autocast)) == []


def kept_bytes(config: ModelConfig, policy: RecomputePolicy, x: torch.Tensor) -> dict[torch.dtype, int]:
    model = TDFormer(config, policy)
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        output = model.forward_segments(x)
    assert output.requires_grad
    sizes: dict[torch.dtype, int] = {}
    for tensor in kept.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.untyped_storage().nbytes()
    return sizes


def test_every_policy_keeps_less_and_sums_of_spikes_as_bytes() -> None:
    x = images(2, 64, 64)
    for backbone in ("qkformer-imagenet", "sdt-imagenet"):
        kept = {policy: kept_bytes(small(backbone), policy, x) for policy in get_args(RecomputePolicy)}
        total = {policy: sum(sizes.values()) for policy, sizes in kept.items()}
        assert max(total["segment"], total["block_segment"]) < total["none"] / 5
        assert total["block"] < total["block_segment"]
        # Of SDT only the top-down spikes are bytes (of eight bits): what its blocks hand on are currents.
        assert (kept["block"].get(torch.uint8, 0) > 2000) is (backbone == "qkformer-imagenet")


@pytest.mark.slow
def test_the_largest_network_keeps_a_tenth_and_grows_slowly_with_time() -> None:
    """The promise of the README, on the real network at a quarter of its resolution: bytes go with the pixels."""
    config, x = ModelConfig(), images(1, 112, 112)
    none, best = (sum(kept_bytes(config, policy, x).values()) * 4 / 1e6 for policy in ("none", "block_segment"))
    longer = sum(kept_bytes(config.model_copy(update={"time_steps": 8}), "block_segment", x).values()) * 4 / 1e6
    assert none <= 1400
    assert best <= 190
    assert longer <= 1.35 * best


def test_a_second_backward_pass_through_the_same_graph_is_the_same() -> None:
    model_with_loss = ModelWithLoss(small(), label_smoothing=0.1, recompute="block")
    lively(model_with_loss)
    loss = model_with_loss(images(2), torch.arange(2))
    loss.backward(retain_graph=True)
    first = [parameter.grad.clone() for parameter in model_with_loss.parameters()]
    model_with_loss.zero_grad()
    loss.backward()
    assert all(torch.equal(parameter.grad, once) for parameter, once in zip(model_with_loss.parameters(), first, strict=True))


TRAINED = {
    "without the stem": r"(?!backbone\.stages\.0\.patch_embed)",
    "the last stage": r"backbone\.stages\.2|backbone\.head|processing",
    "the head": r"backbone\.head",
    "the top-down path": r"processing|.*\.control\.",
}
"""Regular expressions for the beginning of the names of the parameters that are trained."""


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("policy", POLICIES)
def test_frozen_parts_recompute_to_the_same_bits(policy: RecomputePolicy, trained: str) -> None:
    """Parts that are not trained are no part of the graph, and a later segment still needs their neuron state."""
    x, results = images(2, 64, 64), []
    for own in ("none", policy):
        torch.manual_seed(0)
        model = TDFormer(small(segments=4), own)
        lively(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(re.match(TRAINED[trained], name) is not None)
        model.forward_segments(x).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert any(gradient is not None and gradient.any() for gradient in gradients.values())
        results.append(gradients | dict(model.named_buffers()))
    assert different(*results) == []


def test_evaluation_keeps_nothing_and_recomputes_nothing() -> None:
    torch.manual_seed(0)
    plain = TDFormer(small()).eval()
    recomputing = TDFormer(small(), "block_segment").eval()
    recomputing.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(images(2)), recomputing(images(2)))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_mode_may_change_before_the_backward_pass(policy: RecomputePolicy) -> None:
    """A rerun is in the mode of the first run, whatever mode came since: drop path and BatchNorm depend on it."""
    x, results = images(2), []
    config = small(BACKBONES["qkformer-imagenet"].model_copy(update={"drop_path": 0.4}))
    for own in ("none", policy):
        torch.manual_seed(0)
        model = TDFormer(config, own)
        lively(model)
        model.train()(x)
        model.eval()
        model.backbone.transform().train()  # a part of it trains
        output = model.forward_segments(x)
        model.train()
        output.square().sum().backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()} | dict(model.named_buffers()))
    assert different(*results) == []


def test_a_users_own_random_layer_is_repeated() -> None:
    results = []
    for policy in ("none", "block_segment"):
        torch.manual_seed(0)
        model = TDFormer(small(), policy)
        lively(model)
        model.backbone.transform()[0].mlp = torch.nn.Sequential()  # replaced below, so that the weights before stay the same
        model.backbone.transform()[0].mlp.forward = lambda x, neuron_state: torch.nn.functional.dropout(x, 0.5)
        model.forward_segments(images(2)).square().sum().backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert different(*results) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_a_network_changed_before_the_backward_pass_is_told(policy: RecomputePolicy) -> None:
    model = TDFormer(small(), policy)
    output = model.forward_segments(images(2))
    with torch.no_grad():
        model.backbone.patch_stem.convolutions[1].synapse.weight.mul_(2)
    with pytest.raises(RuntimeError, match="was changed between the forward and the backward pass"):
        output.sum().backward()


def test_a_layer_that_makes_fractions_of_spikes_is_told() -> None:
    """Sums of spikes are kept in bytes: what would not survive that must not pass in silence."""
    model = TDFormer(small(), "block")
    lively(model)
    model.backbone.transform()[0].mlp.register_forward_hook(lambda module, inputs, output: output * 0.3)
    with pytest.raises(RuntimeError, match=r"a block handed on something else than whole numbers from 0 to 255"):
        model.forward_segments(images(2)).sum().backward()


def test_second_derivatives_are_refused() -> None:
    model = TDFormer(small(), "block")
    with pytest.raises(RuntimeError, match=r"second derivatives .* need the recompute policy none"):
        torch.autograd.grad(model.forward_segments(images(2)).sum(), list(model.parameters()), create_graph=True, allow_unused=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_kept_is_freed_with_the_graph(policy: RecomputePolicy) -> None:
    """No circle of references holds it, so that nothing waits for the garbage collector."""
    model = TDFormer(small(), policy)
    gc.disable()
    try:
        before = [id(thing) for thing in gc.get_objects() if type(thing) is _Unit]
        for _ in range(2):
            model.forward_segments(images(2)).sum().backward()
            model.forward_segments(images(2))  # never goes backward
        assert not [thing for thing in gc.get_objects() if type(thing) is _Unit and id(thing) not in before]
    finally:
        gc.enable()
