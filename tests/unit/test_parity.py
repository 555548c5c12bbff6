"""The backbones are the same functions as the public implementations, under the published parameter names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tdformer.config import ModelConfig
from tdformer.models.neurons import LIF
from tdformer.models.pretrained import read_published
from tdformer.models.published_names import own_names
from tdformer.models.registry import MODELS, create_model, parameter_counts
from tdformer.models.tdformer import BACKBONES, TDFormer

REFERENCE = Path(__file__).parent.parent / "reference"
SHARED = {"samples_share_projection": True}
"""Is a trait of the public QKFormer code."""
NAMED = {
    "qkformer_imagenet_tiny": ("qkformer_hst10_384", SHARED),
    "qkformer_cifar_tiny": ("qkformer_hst4_384", SHARED),
    "qkformer_cifar10dvs_tiny": ("qkformer_hst2_256_cifar10dvs", SHARED),
    "qkformer_dvs128_tiny": ("qkformer_hst2_256_dvs128", SHARED),
    "spikformer_imagenet_tiny": ("spikformer8_512", {}),
    "spikformer_cifar_tiny": ("spikformer4_384", {}),
    "sdt_imagenet_tiny": ("sdt8_512", {}),
    "sdt_cifar_tiny": ("sdt2_256", {}),
    "sdt_cifar10dvs_tiny": ("sdt2_256_cifar10dvs", {}),
    "sdt_dvs128_tiny": ("sdt2_256_dvs128", {}),
}
"""Each file of reference data: the name of a network of its kind, and what else the public code has. Only width and depth differ."""


def sizes(name: str) -> dict[str, Any]:
    """Return width, depth, heads, classes and time steps of the network behind a file of reference data."""
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    depths = config["depths"] if isinstance(config["depths"], list) else [config["depths"]]
    given = {key: config[key] for key in ("embed_dims", "num_heads", "num_classes", "time_steps")}
    return {**given, "depths": depths, "segments": 1}


def small_one(name: str) -> ModelConfig:
    """Return the named network of the same kind as a file of reference data, in the file's width and depth."""
    named, traits = NAMED[name]
    return create_model(named, **sizes(name), **traits).config


def part(reference: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in reference.items() if name.startswith(prefix)}


def rates_of(model: nn.Module) -> dict[str, float]:
    """Return a dict that gets the firing rate of each layer of neurons in the model's next pass."""
    rates: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _, inputs, spikes, name=name: rates.update({name: spikes.mean().item()}))
    return rates


@pytest.mark.parametrize("name", NAMED)
def test_backbone_reproduces_the_public_implementation(name: str) -> None:
    """Logits, loss, all gradients and BatchNorm buffers in float64. Neurons fire in every layer, so that each takes part."""
    reference, config = load_file(REFERENCE / f"{name}.safetensors"), small_one(name)
    model = BACKBONES[config.backbone.family](config.backbone, config.num_classes, config.time_steps).double()
    own = own_names(model.state_dict(), config.backbone)
    model.load_state_dict({own[published]: tensor for published, tensor in part(reference, "state.").items()})
    rates = rates_of(model)
    torch.testing.assert_close(model.eval()(reference["input"]), reference["logits_eval"], rtol=0, atol=1e-10)
    assert len(rates) > 10
    assert min(rates.values()) > 0.03

    logits = model.train()(reference["input"])
    loss = torch.nn.functional.cross_entropy(logits, reference["target"])
    loss.backward()
    torch.testing.assert_close(logits, reference["logits_train"], rtol=0, atol=1e-10)
    torch.testing.assert_close(loss.view(1), reference["loss_train"], rtol=0, atol=1e-10)
    gradients = {own[published]: gradient for published, gradient in part(reference, "grad.").items()}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert gradients.keys() == trained.keys()
    for parameter_name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, gradients[parameter_name], rtol=0, atol=1e-10)
    buffers = dict(model.named_buffers())
    after = part(reference, "after.")
    assert after
    for buffer_name, value in after.items():
        torch.testing.assert_close(buffers[own[buffer_name]], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMED)
def test_a_published_file_gives_the_published_answers_under_the_networks_name(name: str, tmp_path: Path) -> None:
    """The reference's own tensors are such a file. Its choices without parameters, such as the pooling, come with the name."""
    reference, config = load_file(REFERENCE / f"{name}.safetensors"), small_one(name)
    torch.save({"model": part(reference, "state.")}, tmp_path / "published.pth")
    imported = read_published(tmp_path / "published.pth", config)
    assert (imported.unused, imported.missing) == ([], [])
    model = TDFormer(config).double().eval()
    model.load_state_dict(imported.state)
    torch.testing.assert_close(model(reference["input"]), reference["logits_eval"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "parameters"),
    {
        "qkformer_hst10_768": 64_962_760,
        "qkformer_hst10_512": 29_079_336,
        "qkformer_hst10_384": 16_473_688,
        "spikformer4_384": 9_330_874,
        "spikformer8_512": 29_705_768,
        "spikformer8_768": 66_363_208,
        "sdt2_256": 2_567_082,
        "sdt2_512": 10_233_546,
        "sdt8_512": 29_689_896,
        "sdt8_768": 66_339_144,
        "qkformer_hst2_256_cifar10dvs": 1_504_138,
        "qkformer_hst2_256_dvs128": 1_999_114 + 257,  # the public code's default head has 10 classes; the data set has 11
    }.items(),
)
def test_backbone_has_as_many_parameters_as_the_public_one(name: str, parameters: int) -> None:
    assert parameter_counts(MODELS[name].config) == (parameters, parameters)


@pytest.mark.parametrize(
    ("name", "parameters", "millions"),
    [
        ("tdformer_hst10_768", 64_962_760 + 7 * 768**2 + 768, "69.09"),
        ("tdformer_hst10_768_1block", 64_962_760 + 768**2 + 768, "65.55"),
        ("tdformer_spikformer4_384", 9_330_874 + 4 * 384**2 + 384, "9.92"),
    ],
)
def test_tdformer_has_the_papers_parameters(name: str, parameters: int, millions: str) -> None:
    """Each block with feedback adds C x C; the processing module C."""
    total, _ = parameter_counts(MODELS[name].config)
    assert total == parameters
    assert f"{total / 1e6:.2f}" == millions
