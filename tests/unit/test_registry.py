"""Networks by name, for us and for timm."""

from __future__ import annotations

import json

import pytest
import timm
import torch

import tdformer.models
from data_pipelines.errors import UserError
from tdformer.models.registry import MODELS
from tests.conftest import tdformer as tdformer_command
from tests.unit.networks import images


def test_timm_lists_and_makes_them() -> None:
    tdformers = [name for name in MODELS if name.startswith("tdformer_")]
    assert sorted(timm.list_models("tdformer*")) == sorted(tdformers)
    assert set(MODELS) <= set(timm.list_models())
    model = timm.create_model("tdformer_sdt2_256", num_classes=7, in_chans=1, drop_path_rate=0.1, segments=4)
    assert model(images(2, channels=1)).shape == (2, 7)
    assert (model.config.segments, model.config.backbone.drop_path) == (4, 0.1)


def test_timm_knows_the_input_of_each() -> None:
    model = timm.create_model("tdformer_sdt2_256", num_classes=0)
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["mean"], data["crop_pct"]) == ((3, 32, 32), (0.4914, 0.4822, 0.4465), 1.0)
    assert model(images(2)).shape == (2, 256)


def test_there_is_a_tdformer_for_every_backbone() -> None:
    backbones = [name for name in MODELS if not name.startswith("tdformer_")]
    assert len(backbones) > 10
    for name in backbones:
        backbone, model = MODELS[name], MODELS["tdformer_" + name.removeprefix("qkformer_")]
        assert model.config.backbone == backbone.config.backbone
        assert model.config.feedback is not None
        assert backbone.config.feedback is None


@pytest.mark.parametrize("name", [name for name in MODELS if "2_256" in name or name == "tdformer_hst4_384"])
def test_the_same_verbs_work_on_each(name: str) -> None:
    torch.manual_seed(0)
    model = tdformer.models.create_model(name, time_steps=2).eval()
    config, width = model.config, model.config.backbone.embed_dims
    x = images(2, channels=config.backbone.in_channels)
    features = model.forward_features(x)
    stride = config.backbone.stride
    assert features.shape == (2, 2, width, 32 // stride, 32 // stride)
    logits = model.forward_head(features)
    assert torch.equal(logits, model(x))
    assert logits.shape == (2, config.num_classes) == (2, model.num_classes)
    assert model.num_features == width
    assert model.get_classifier().out_features == config.num_classes

    pre_logits = model.forward_head(features, pre_logits=True)
    assert torch.equal(model.get_classifier()(pre_logits), logits)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert torch.equal(model(x), pre_logits)

    model.set_grad_checkpointing()
    assert model.recompute == "block_segment"
    model.set_grad_checkpointing(enable=False)
    assert model.recompute == "none"


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("tdformer_hst10_786", {}, r"no model 'tdformer_hst10_786'; did you mean tdformer_hst10_768"),
        ("resnet50", {}, r"no model 'resnet50' \(`tdformer models` lists them all\)"),
        ("tdformer_sdt2_256", {"segment": 2}, r"no key 'segment'; did you mean segments\? \(allowed: backbone, num_classes"),
        ("sdt2_256", {"control": "cm2"}, r"no key 'control'"),
        ("tdformer_sdt2_256", {"feedback": None, "control": "cm2"}, r"no key 'control'"),
        ("tdformer_sdt2_256", {"in_chans": 1, "in_channels": 2}, r"the same key is given by two names"),
        ("tdformer_sdt2_256", {"time_steps": 5}, r"time_steps must be a multiple of segments, got 5 time steps and 2 segments"),
        ("tdformer_sdt2_256", {"control": "cm9"}, r"feedback\.control: got 'cm9', allowed is 'cm1', 'cm2' or 'cm3'"),
        ("tdformer_sdt2_256", {"recompute": "all"}, r"recompute must be one of none, segment, block, block_segment, got 'all'"),
    ],
)
def test_what_cannot_be_made_is_told_with_what_is_near(name: str, changes: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tdformer.models.create_model(name, **changes)


def test_timms_usual_arguments_are_taken() -> None:
    usual = {"drop_rate": 0.0, "attn_drop_rate": 0.0, "global_pool": "avg", "img_size": 64, "bn_momentum": 0.02, "bn_eps": 1e-5}
    model = timm.create_model("tdformer_sdt2_256", **usual)
    assert model.config.batch_norm_momentum == 0.02
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 64, 64)
    assert timm.create_model("sdt2_256", img_size=(48, 48)).default_cfg["input_size"] == (3, 48, 48)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"drop_rate": 0.1}, "drop_rate must be 0.0, got 0.1: the networks have no dropout, only drop_path_rate"),
        ({"global_pool": "max"}, "global_pool must be avg, got 'max': the head takes the mean"),
        ({"img_size": 33}, "img_size must be the side of square images, a multiple of 4, got 33; a call takes any H and W"),
        ({"img_size": (32, 64)}, "img_size must be the side of square images"),
        ({"img_size": "32"}, "img_size must be the side of square images"),
        ({"bn_momentum": 0.1, "batch_norm_momentum": 0.1}, "the same key is given by two names"),
    ],
)
def test_timms_arguments_that_do_not_fit_are_refused_by_their_meaning(changes: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        timm.create_model("tdformer_sdt2_256", **changes)


def test_timms_pretrained_is_told_what_to_do_instead() -> None:
    with pytest.raises(UserError, match="no weights of tdformer_sdt2_256 are published; give local-dir:FOLDER as the name"):
        timm.create_model("tdformer_sdt2_256", pretrained=True)


def test_models_command_prints_the_parameter_table() -> None:
    shown = tdformer_command("models", "*hst10_768*", "--json")
    rows = {row["name"]: row for row in json.loads(shown.stdout)["models"]}
    assert rows["tdformer_hst10_768"]["parameters"] == 69_092_296
    assert rows["tdformer_hst10_768"]["backbone_parameters"] == 64_962_760
    assert len(rows) == 3
    assert "qkformer_hst10_768 " in tdformer_command("models").stdout  # names are not cut off
    assert "sdt8_512" in tdformer_command("models", "sdt8").stdout
    nothing = tdformer_command("models", "resnet*")
    assert nothing.returncode == 2
    assert "no model's name is like 'resnet*'" in nothing.stderr
