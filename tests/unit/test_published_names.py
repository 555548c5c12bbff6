"""Published names are the names of the Backbone in other words: each network's tensors go there and back, one to one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tdformer.config import BackboneConfig
from tdformer.models.published_names import own_names, published_name
from tdformer.models.registry import MODELS
from tdformer.models.tdformer import BACKBONES as FAMILIES
from tests.unit.networks import BACKBONES

REFERENCE = Path(__file__).parent.parent / "reference"
NETWORKS = {**{name: named.config.backbone for name, named in MODELS.items()}, **BACKBONES}


def names_of(config: BackboneConfig) -> list[str]:
    with torch.device("meta"):
        return list(FAMILIES[config.family](config, num_classes=10, time_steps=4).state_dict())


@pytest.mark.parametrize("network", NETWORKS)
def test_names_go_there_and_back(network: str) -> None:
    config = NETWORKS[network]
    names = names_of(config)
    own = own_names(names, config)
    assert list(own.values()) == names
    assert len(own) == len(names)
    assert all(published_name(name, config) == published for published, name in own.items())
    assert [name for name in own if re.search(r"synapse|stages|convolutions|neurons|shortcut|position", name)] == []


@pytest.mark.parametrize("network", BACKBONES)
def test_names_are_those_of_the_public_code(network: str) -> None:
    """Blocks are compared by their first one, since the reference networks have other depths."""
    with safe_open(REFERENCE / f"{network.replace('-', '_')}_tiny.safetensors", "pt") as file:
        stored = {name.removeprefix("state.") for name in file.keys() if name.startswith("state.")}  # noqa: SIM118
    later_blocks = re.compile(r"(block|stage\d)\.[1-9]")
    ours = own_names(names_of(NETWORKS[network]), NETWORKS[network])
    assert {name for name in ours if not later_blocks.match(name)} == {name for name in stored if not later_blocks.match(name)}


@pytest.mark.parametrize(
    ("network", "own", "published"),
    [
        ("qkformer-imagenet", "stages.0.patch_embed.convolutions.2.norm.running_mean", "patch_embed1.proj2_bn.running_mean"),
        ("qkformer-imagenet", "stages.2.blocks.0.attn.q.synapse.weight", "stage3.0.attn.q_conv.weight"),
        ("qkformer-imagenet", "stages.0.blocks.0.attn.k.norm.bias", "stage1.0.tssa.k_bn.bias"),
        ("qkformer-cifar", "stages.2.blocks.1.attn.proj.synapse.bias", "stage3.1.ssa.proj_conv.bias"),
        ("qkformer-cifar", "stages.1.patch_embed.convolutions.0.synapse.weight", "patch_embed2.proj3_conv.weight"),
        ("qkformer-dvs128", "stages.0.patch_embed.convolutions.3.synapse.weight", "patch_embed1.proj3_conv.weight"),
        ("qkformer-dvs128", "stages.1.patch_embed.convolutions.0.synapse.weight", "patch_embed2.proj_conv.weight"),
        ("qkformer-dvs128", "stages.1.patch_embed.shortcut.norm.weight", "patch_embed2.proj_res_bn.weight"),
        ("qkformer-dvs128", "stages.1.blocks.1.attn.v.synapse.weight", "stage2.1.ssa.v_conv.weight"),
        ("qkformer-dvs128", "stages.0.blocks.0.mlp.fc2.norm.weight", "stage1.0.mlp.mlp2_bn.weight"),
        ("spikformer-cifar", "stages.0.blocks.0.attn.q.synapse.weight", "block.0.attn.q_linear.weight"),
        ("spikformer-cifar", "stages.0.blocks.1.mlp.fc1.synapse.bias", "block.1.mlp.fc1_linear.bias"),
        ("spikformer-cifar", "stages.0.blocks.1.norm2.weight", "block.1.norm2.weight"),
        ("spikformer-cifar", "stages.0.patch_embed.convolutions.0.synapse.weight", "patch_embed.proj_conv.weight"),
        ("sdt-cifar", "stages.0.patch_embed.convolutions.3.norm.weight", "patch_embed.proj_bn3.weight"),
        ("sdt-cifar10dvs", "stages.0.patch_embed.position.synapse.weight", "patch_embed.rpe_conv.weight"),
        ("sdt-cifar10dvs", "stages.0.blocks.1.attn.talking_heads.weight", "block.1.attn.talking_heads.weight"),
    ],
)
def test_a_name_in_both_words(network: str, own: str, published: str) -> None:
    config = NETWORKS[network]
    assert own in names_of(config)
    assert published_name(own, config) == published


@pytest.mark.parametrize("network", NETWORKS)
def test_control_modules_have_no_published_name(network: str) -> None:
    """Only the path to them is in published words."""
    config = NETWORKS[network]
    last = len(config.depths) - 1
    published = published_name(f"stages.{last}.blocks.0.attn.control.td_conv.weight", config)
    assert published.endswith((".0.attn.control.td_conv.weight", ".0.ssa.control.td_conv.weight"))
