"""Parameter groups, optimizers and the loss scale."""

from __future__ import annotations

import copy
from itertools import accumulate, pairwise

import pytest
import timm.optim
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdformer.checkpoint.loss_scale import STEPS_TO_GROW, LossScale
from tdformer.config import BackboneConfig, FeedbackConfig, ModelConfig, OptimizerConfig
from tdformer.models.registry import MODELS
from tdformer.models.tdformer import TDFormer
from tdformer.training.lamb import Lamb, Share
from tdformer.training.optimizer import layer_of, make_optimizer, parameter_groups
from tests.unit.networks import small
from tests.unit.thread_ranks import ThreadContext, on_ranks


def test_vectors_are_not_decayed_and_nothing_is_left_out() -> None:
    backbone = BackboneConfig(embed_dims=32, num_heads=2, depths=(1, 1, 1))
    model = TDFormer(ModelConfig(backbone=backbone, feedback=FeedbackConfig()))
    decayed, plain = parameter_groups(model, OptimizerConfig(weight_decay=0.3))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.dim() > 1 for parameter in decayed["params"])
    assert all(parameter.dim() == 1 for parameter in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_layers_grow_with_depth_in_every_network(name: str) -> None:
    """From the image on, each layer is there, in the order in which the network runs; top-down modules stand with the head."""
    config = MODELS[name].config
    with torch.device("meta"):
        model = TDFormer(config)
    topdown = model.topdown_parameters()
    layers = {key: layer_of(key, config.backbone) for key, parameter in model.named_parameters() if parameter.requires_grad}
    head, depths = layers["backbone.head.weight"], config.backbone.depths
    assert head == len(depths) + depths[-1]
    assert sorted(set(layers.values())) == list(range(head + 1))
    assert {layers[key] for key in topdown} <= {head}
    pieces = [*model.backbone.bottom_up(), *model.backbone.transform(), model.backbone.head]
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    by_piece = [{layers[key] for p in piece.parameters() if (key := names[id(p)]) in layers and key not in topdown} for piece in pieces]
    assert all(len(of_piece) == 1 for of_piece in by_piece)
    in_order = [of_piece.pop() for of_piece in by_piece]
    assert in_order == sorted(in_order)
    assert len(set(in_order[-depths[-1] - 2 :])) == depths[-1] + 2  # the last stage: patch embedding, each block, head


def test_layer_decay_scales_the_rate_of_each_layer_and_loses_no_parameter() -> None:
    model = TDFormer(small())
    groups = parameter_groups(model, OptimizerConfig(layer_decay=0.5, weight_decay=0.3))
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    assert len(scale) == sum(len(group["params"]) for group in groups) == len(parameters)
    assert scale[id(parameters["backbone.head.weight"])] == scale[id(parameters["processing.weight"])] == 1
    assert scale[id(parameters["backbone.stages.2.blocks.1.attn.control.td_conv.weight"])] == 1
    assert scale[id(parameters["backbone.stages.2.blocks.1.attn.q.synapse.weight"])] == 0.5
    assert scale[id(parameters["backbone.stages.2.blocks.0.attn.q.synapse.weight"])] == 0.25
    assert scale[id(parameters["backbone.stages.0.patch_embed.convolutions.0.synapse.weight"])] == 0.5**5
    assert all(group["weight_decay"] == (0.3 if parameter.dim() > 1 else 0) for group in groups for parameter in group["params"])
    assert {group["lr_scale"] for group in parameter_groups(model, OptimizerConfig())} == {1.0}


def test_lamb_steps_as_timms_does() -> None:
    """Five steps from the same weights and gradients. One weight is zero, and one gets no gradient; timm then scales by 1."""
    config, models = OptimizerConfig(name="lamb", weight_decay=0.1, eps=1e-6), [TDFormer(small()) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        torch.nn.init.zeros_(model.backbone.head.weight)
    ours, theirs = make_optimizer(models[0], config), timm.optim.Lamb(parameter_groups(models[1], config), eps=1e-6, max_grad_norm=None)
    before = copy.deepcopy(models[0].state_dict())
    for step in range(5):
        torch.manual_seed(step)
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            one.grad = torch.randn_like(one) if one.numel() != 32 else torch.zeros_like(one)
            other.grad = one.grad.clone()
        for optimizer in (ours, theirs):
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            optimizer.step()
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7, msg=name)
    assert all(not torch.equal(one, before[name]) for name, one in models[0].named_parameters() if one.dim() > 1)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), cuts=st.lists(st.integers(0, 240), max_size=3), seed=st.integers(0, 99))
def test_lamb_makes_the_same_bits_however_parameters_are_cut(sizes: list[int], cuts: list[int], seed: int) -> None:
    """The flat parameters are cut at any elements into the tensors of several ranks, as ZeRO 1 to 3 cut them."""
    torch.manual_seed(seed)
    values, gradients = [torch.randn(size) for size in sizes], [torch.randn(size) for size in sizes]
    whole = [torch.nn.Parameter(value.clone()) for value in values]
    for parameter, gradient in zip(whole, gradients, strict=True):
        parameter.grad = gradient.clone()
    stepped(lamb_of(whole))

    flat, grad = torch.cat(values), torch.cat(gradients)
    borders = [0, *sorted({min(cut, len(flat)) for cut in cuts} - {0, len(flat)}), len(flat)]
    starts = [0, *accumulate(sizes)]

    def on_rank(context: ThreadContext) -> torch.Tensor:
        first, last = borders[context.rank : context.rank + 2]
        part = torch.nn.Parameter(flat[first:last].clone())
        part.grad = grad[first:last].clone()
        inside = [
            Share(number, max(start, first) - first, min(end, last) - first)
            for number, (start, end) in enumerate(pairwise(starts))
            if start < last and end > first
        ]
        optimizer = lamb_of([part])
        optimizer.shard({part: inside}, len(sizes), context.all_reduce_sum)
        return stepped(optimizer)[0].detach()

    assert torch.equal(torch.cat(on_ranks(len(borders) - 1, on_rank)), torch.cat([parameter.detach() for parameter in whole]))


def lamb_of(parameters: list[torch.nn.Parameter]) -> Lamb:
    return Lamb([{"params": parameters, "weight_decay": 0.1, "lr": 0.02}], (0.9, 0.999), 1e-6)


def stepped(optimizer: Lamb) -> list[torch.Tensor]:
    """Return the tensors after three steps with the same gradient."""
    tensors = optimizer.param_groups[0]["params"]
    gradients = [tensor.grad.clone() for tensor in tensors]
    for _ in range(3):
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient.clone()
        optimizer.step()
    return tensors


def test_a_loss_scale_falls_at_an_overflow_and_grows_after_enough_good_steps() -> None:
    scale = LossScale().after_step().after_overflow()
    assert scale == LossScale(2.0**15, 0)
    for _ in range(STEPS_TO_GROW):
        assert scale.factor == 2.0**15
        scale = scale.after_step()
    assert scale == LossScale(2.0**16, 0)
    while scale.can_fall:
        scale = scale.after_overflow()
    assert scale.factor == 1
