"""The backbones are the same functions as the public implementations, under the published parameter names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tdformer.config import BackboneConfig
from tdformer.models.published_names import own_names
from tdformer.models.registry import MODELS, parameter_counts
from tdformer.models.tdformer import BACKBONES

REFERENCE = Path(__file__).parent.parent / "reference"
SHARED = {"samples_share_projection": True}  # as the public QKFormer code has it
FILES = {
    "qkformer_imagenet_tiny": SHARED,
    "qkformer_cifar_tiny": {"variant": "cifar", **SHARED},
    "spikformer_imagenet_tiny": {"family": "spikformer"},
    "spikformer_cifar_tiny": {"family": "spikformer", "variant": "cifar"},
    "sdt_imagenet_tiny": {"family": "sdt"},
}


def part(reference: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in reference.items() if name.startswith(prefix)}


@pytest.mark.parametrize("name", FILES)
def test_backbone_reproduces_the_public_implementation(name: str) -> None:
    """Logits, loss, all gradients and BatchNorm buffers in float64."""
    path = REFERENCE / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        sizes = json.loads(file.metadata()["config"])
    depths = sizes["depths"] if isinstance(sizes["depths"], list) else [sizes["depths"]]
    config = BackboneConfig(embed_dims=sizes["embed_dims"], num_heads=sizes["num_heads"], depths=depths, **FILES[name])
    reference = load_file(path)
    model = BACKBONES[config.family](config, sizes["num_classes"], sizes["time_steps"]).double()
    own = own_names(model.state_dict(), config)
    model.load_state_dict({own[published]: tensor for published, tensor in part(reference, "state.").items()})
    torch.testing.assert_close(model.eval()(reference["input"]), reference["logits_eval"], rtol=0, atol=1e-10)

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
