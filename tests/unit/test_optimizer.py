"""Parameter groups, optimizers and the loss scale."""

from __future__ import annotations

import pytest
import torch

from tdformer.checkpoint.loss_scale import STEPS_TO_GROW, LossScale
from tdformer.config import BackboneConfig, FeedbackConfig, ModelConfig, OptimizerConfig
from tdformer.models.registry import MODELS
from tdformer.models.tdformer import TDFormer
from tdformer.training.optimizer import layer_of, make_optimizer, parameter_groups
from tests.unit.networks import small


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


def test_lamb_leaves_clipping_to_the_engine() -> None:
    optimizer = make_optimizer(TDFormer(small()), OptimizerConfig(name="lamb"))
    assert type(optimizer).__name__ == "Lamb"
    assert optimizer.defaults["max_grad_norm"] is None


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
