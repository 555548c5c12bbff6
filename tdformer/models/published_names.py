"""The names of tensors in published checkpoints of QKFormer, Spikformer and SDT.

A backbone names a tensor by the path of attributes to it. The public code of each family has names of its own:

    in the Backbone                       published
    stages.2.blocks.0.attn.q.synapse      stage3.0.attn.q_conv    (QKFormer, imagenet)
    stages.2.blocks.0.attn.q.norm         stage3.0.ssa.q_bn       (QKFormer, cifar)
    stages.0.patch_embed.position.norm    patch_embed.rpe_bn      (Spikformer, SDT)

A checkpoint is imported by its published names. The files that this program writes hold the names of the Backbone.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from tdformer.config import BackboneConfig

Rule = tuple[str, str]
"""A regular expression, and what replaces its match. Rules are applied one after the other."""

LAYER_RULES: list[Rule] = [(r"\.synapse\.", "_conv."), (r"\.norm\.", "_bn.")]
"""The public code keeps synapse, BatchNorm and neurons in separate attributes, whose names differ in their endings."""


def published_name(name: str, backbone: BackboneConfig) -> str:
    """Return the published name of a tensor that a Backbone of this configuration calls `name`."""
    for pattern, replacement in [*LAYER_RULES, *_rules(backbone)]:
        name = re.sub(pattern, replacement, name)
    return name


def own_names(names: Collection[str], backbone: BackboneConfig) -> dict[str, str]:
    """Return {published name: name in the Backbone}, in the order of `names`, which are all names of a Backbone's state dict."""
    own = {published_name(name, backbone): name for name in names}
    assert set(own.values()) == set(names), "two tensors have one published name"
    return own


def _rules(backbone: BackboneConfig) -> list[Rule]:
    match backbone.family, backbone.variant:
        case "qkformer", "imagenet":
            return _qkformer_rules([["proj", "proj1", "proj2"], ["proj3", "proj4"], ["proj3", "proj4"]], "fc", "attn")
        case "qkformer", "cifar":
            return _qkformer_rules([["proj", "proj1"], ["proj3", "proj4"], ["proj3", "proj4"]], "mlp", "ssa")
        case "qkformer", "dvs":
            return _qkformer_rules([["proj", "proj1", "proj2", "proj3"], ["proj", "proj4"]], "mlp", "ssa")
        case "spikformer", "cifar":  # this variant has linear maps in its blocks
            return [*SINGLE_STAGE_RULES, (r"^(block\.\d+\.\w+\.\w+)_conv\.", r"\1_linear.")]
    return SINGLE_STAGE_RULES


def _qkformer_rules(convolutions: list[list[str]], mlp: str, self_attention: str) -> list[Rule]:
    """Return the rules of a variant of QKFormer.

    convolutions: the published names of the convolutions in the patch embedding of each stage. mlp: how the names of the
    MLP's layers begin. self_attention: the name of the attention in the last stage.
    """
    rules = []
    for number, names in enumerate(convolutions, start=1):
        stage = rf"^stages\.{number - 1}\."
        attention = self_attention if number == len(convolutions) else "tssa"
        rules += [(rf"{stage}patch_embed\.convolutions\.{index}_", f"patch_embed{number}.{name}_") for index, name in enumerate(names)]
        rules += [
            (rf"{stage}patch_embed\.shortcut_", f"patch_embed{number}.proj_res_"),
            (rf"{stage}blocks\.(\d+)\.attn\.", rf"stage{number}.\1.{attention}."),
            (rf"{stage}blocks\.(\d+)\.mlp\.fc", rf"stage{number}.\1.mlp.{mlp}"),
        ]
    return rules


SINGLE_STAGE_RULES: list[Rule] = [
    (r"^stages\.0\.patch_embed\.convolutions\.0_(conv|bn)", r"patch_embed.proj_\1"),
    (r"^stages\.0\.patch_embed\.convolutions\.(\d)_(conv|bn)", r"patch_embed.proj_\2\1"),
    (r"^stages\.0\.patch_embed\.position_", "patch_embed.rpe_"),
    (r"^stages\.0\.blocks\.", "block."),
]
"""The rules of Spikformer and SDT."""
