"""A weights folder is what timm's create_model reads, and what timm writes for a hub can be read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import save_for_hf

from tdformer.models import load_pretrained
from tdformer.models.registry import MODELS, create_model
from tdformer.models.timm_folder import nearest_name
from tests.unit.networks import BACKBONES, IMAGE_SIZE, images, small
from tests.unit.test_predictor import CLASSES, weights


@pytest.mark.parametrize("has_feedback", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_network_is_made_of_a_name_and_its_changes(backbone: str, has_feedback: bool) -> None:
    config = small(backbone) if has_feedback else small(backbone, feedback=None, segments=1)
    name, changes = nearest_name(config)
    assert create_model(name, **changes).config == config


@pytest.mark.parametrize("name", MODELS)
def test_a_named_network_is_its_own_nearest(name: str) -> None:
    nearest, changes = nearest_name(MODELS[name].config)
    assert changes == {}
    assert MODELS[nearest].config == MODELS[name].config


@torch.no_grad()
def test_timm_reads_a_weights_folder(tmp_path: Path) -> None:
    folder = weights(tmp_path / "weights", small("qkformer-cifar", num_classes=3))
    expected, x = load_pretrained(folder), images(2, IMAGE_SIZE["qkformer-cifar"], IMAGE_SIZE["qkformer-cifar"])
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(model(x), expected(x))
    assert model(x).std() > 0
    assert model.config == expected.config
    data = resolve_model_data_config(model)
    assert (tuple(data["input_size"]), data["crop_pct"], data["interpolation"]) == ((3, 32, 32), 0.8, "bilinear")
    assert model.pretrained_cfg["label_names"] == CLASSES
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).eval()
    assert other(x).shape == (2, 7)
    assert torch.equal(other.forward_features(x), model.forward_features(x))
    fresh = timm.create_model(f"local-dir:{folder}").eval()
    assert not torch.equal(fresh.forward_features(x), model.forward_features(x))


@torch.no_grad()
def test_what_timm_writes_for_a_hub_is_read_again(tmp_path: Path) -> None:
    folder = weights(tmp_path / "weights", small("sdt-cifar", num_classes=3))
    model, x = timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), images(2, 32, 32)
    save_for_hf(model, str(tmp_path / "hub"), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert torch.equal(again(x), model(x))
    assert again.pretrained_cfg["label_names"] == CLASSES
