"""Weights from outside and for outside."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from data_pipelines.errors import UserError
from tdformer.config import FeedbackConfig, ModelConfig
from tdformer.models import load_pretrained
from tdformer.models.pretrained import read_published, start_from, write_weights
from tdformer.models.published_names import own_names
from tdformer.models.tdformer import TDFormer
from tdformer.models.weights import WeightsError
from tests.unit.networks import BACKBONES, images, lively, small


def published(config: ModelConfig, seed: int = 5) -> dict[str, torch.Tensor]:
    """What a published checkpoint of the backbone would hold, with BatchNorm statistics of a real pass."""
    torch.manual_seed(seed)
    model = TDFormer(config.model_copy(update={"feedback": None}))
    lively(model)
    model.train()(images(2))
    state = model.backbone.state_dict()
    return {name: state[own].clone() for name, own in own_names(state, config.backbone).items()}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("form", ["model", "module.", "bare", "namespace", "safetensors"])
def test_import_takes_every_published_form_and_gives_the_same_function(backbone: str, form: str, tmp_path: Path) -> None:
    config = small(backbone, segments=1, feedback=FeedbackConfig())
    state = published(config)
    path = tmp_path / ("published.safetensors" if form == "safetensors" else "published.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        named = {("module." if form == "module." else "") + name: tensor for name, tensor in state.items()}
        extra = {"args": argparse.Namespace(lr=1.0), "epoch": 3} if form == "namespace" else {}
        torch.save(named if form == "bare" else {"model": named, **extra}, path)

    imported = read_published(path, config)
    assert sorted(imported.used) == sorted(state)
    assert imported.unused == []
    topdown = {"processing.weight", *(name for name in TDFormer(config).state_dict() if ".control." in name)}
    assert set(imported.missing) == topdown
    write_weights(tmp_path / "weights", imported.state, config, {})

    network = TDFormer(config)
    assert set(start_from(network, tmp_path / "weights")) == topdown
    reference = TDFormer(config).eval()
    own = own_names(reference.backbone.state_dict(), config.backbone)
    reference.backbone.load_state_dict({own[name]: tensor for name, tensor in state.items()}, strict=False)
    assert torch.equal(network.eval()(images(2)), reference(images(2)))  # feedback starts at zero, and there is one segment


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model.module."])
def test_prefixes_of_training_programs_are_taken_off(prefix: str, tmp_path: Path) -> None:
    state = published(small())
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in state.items()}}, tmp_path / "published.pth")
    assert sorted(read_published(tmp_path / "published.pth", small()).used) == sorted(state)


def test_metrics_options_and_paths_beside_the_tensors_are_read(tmp_path: Path) -> None:
    """numpy's numbers and paths are what evaluation loops and argument parsers leave in published files."""
    state = published(small())
    options = argparse.Namespace(lr=np.float64(1e-3), output=tmp_path / "out", data=PureWindowsPath("c:/data"))
    beside = {"best": np.float32(84.2), "epoch": np.int64(3), "history": np.arange(3.0), "args": options, "path": Path("x")}
    torch.save({"model": state, **beside}, tmp_path / "published.pth")
    imported = read_published(tmp_path / "published.pth", small())
    assert sorted(imported.used) == sorted(state)
    assert (imported.key, imported.other_keys) == ("model", [])


def test_the_average_beside_the_weights_is_chosen_by_its_key(tmp_path: Path) -> None:
    path, state, average = tmp_path / "published.pth", published(small(), seed=5), published(small(), seed=6)
    torch.save({"state_dict": state, "model_ema": average, "epoch": 3}, path)
    usual, chosen = read_published(path, small()), read_published(path, small(), key="model_ema")
    assert (usual.key, usual.other_keys) == ("state_dict", ["model_ema"])
    assert (chosen.key, chosen.other_keys) == ("model_ema", ["state_dict"])
    name = "backbone.head.weight"
    assert torch.equal(usual.state[name], state["head.weight"])
    assert torch.equal(chosen.state[name], average["head.weight"])
    with pytest.raises(WeightsError, match="no tensors under 'ema'; it has them under: state_dict, model_ema"):
        read_published(path, small(), key="ema")
    save_file(state, tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="no tensors under 'model'; give no key, its tensors have no name above them"):
        read_published(tmp_path / "bare.safetensors", small(), key="model")


def test_a_whole_network_without_counters_is_read_back(tmp_path: Path) -> None:
    """Old files of torch have no num_batches_tracked. The counters begin at zero."""
    config = small(segments=1, feedback=None)
    whole = published(config)
    save_file({name: tensor for name, tensor in whole.items() if not name.endswith("num_batches_tracked")}, tmp_path / "old.safetensors")
    imported = read_published(tmp_path / "old.safetensors", config)
    assert imported.missing == []
    write_weights(tmp_path / "weights", imported.state, config, {})
    save_file(whole, tmp_path / "whole.safetensors")
    write_weights(tmp_path / "whole", read_published(tmp_path / "whole.safetensors", config).state, config, {})
    old, new = load_pretrained(tmp_path / "weights"), load_pretrained(tmp_path / "whole")
    assert torch.equal(old(images(2)), new(images(2)))
    assert {int(buffer) for name, buffer in old.named_buffers() if name.endswith("num_batches_tracked")} == {0}


def test_a_new_classifier_is_written_and_read_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TDFormer(small())
    model.set_input(32, (0.5,) * 3, (0.5,) * 3, crop_pct=1.0)
    model.reset_classifier(7)
    assert (model.config.num_classes, model.default_cfg["num_classes"], model.pretrained_cfg["num_classes"]) == (7, 7, 7)
    write_weights(tmp_path / "weights", model.state_dict(), model.config, {})
    again = load_pretrained(tmp_path / "weights")
    assert torch.equal(again(images(2)), model.eval()(images(2)))
    assert again(images(2)).shape == (2, 7)
    model.reset_classifier(0)
    assert model.default_cfg["num_classes"] == 0
    with pytest.raises(UserError, match=r"num_classes: got -1"):
        model.reset_classifier(-1)
    with pytest.raises(UserError, match=r"global_pool must be avg, .*, got 'max'"):
        model.reset_classifier(3, global_pool="max")


def test_a_new_head_is_left_out_and_starts_fresh(tmp_path: Path) -> None:
    state = published(small(num_classes=7))
    torch.save({"model": state}, tmp_path / "seven.pth")
    config = small(num_classes=3)
    with pytest.raises(WeightsError, match=r"(?s)nothing was loaded.*2 of another shape.*head\.weight: \[7, 32\], \[3, 32\].*--head new"):
        read_published(tmp_path / "seven.pth", config)
    imported = read_published(tmp_path / "seven.pth", config, head="new")
    assert sorted(imported.unused) == ["head.bias", "head.weight"]
    assert {"backbone.head.weight", "backbone.head.bias"} <= set(imported.missing)
    write_weights(tmp_path / "weights", imported.state, config, {})
    model = TDFormer(config)
    head = model.backbone.head.weight.clone()
    assert "backbone.head.weight" in start_from(model, tmp_path / "weights")
    assert torch.equal(model.backbone.head.weight, head)
    assert torch.equal(model.backbone.patch_stem.first.synapse.weight, state["patch_embed1.proj_conv.weight"])
    with pytest.raises(WeightsError, match=r"holds a part of a network: .* give it to a run as `init`"):
        load_pretrained(tmp_path / "weights")


def test_another_architecture_is_refused_with_the_names(tmp_path: Path) -> None:
    torch.save({"model": published(small("spikformer-imagenet"))}, tmp_path / "other.pth")
    with pytest.raises(WeightsError) as refused:
        read_published(tmp_path / "other.pth", small("qkformer-imagenet"))
    sentence = str(refused.value)
    assert "of another architecture than this qkformer (imagenet), 32 dims, depths [1, 1, 2]" in sentence
    assert "not in the file: patch_embed1.proj_conv.weight" in sentence
    assert "without a place in the network: block.0.attn" in sentence


def test_a_file_without_a_head_is_for_a_new_one(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in published(small()).items() if not name.startswith("head.")}
    save_file(state, tmp_path / "headless.pth")  # safetensors by what it holds, not by its name
    with pytest.raises(WeightsError, match=r"2 not in the file: head\.weight, head\.bias"):
        read_published(tmp_path / "headless.pth", small())
    assert {"backbone.head.weight", "backbone.head.bias"} <= set(read_published(tmp_path / "headless.pth", small(), head="new").missing)


def test_tied_tensors_are_written_each_for_itself(tmp_path: Path) -> None:
    state = published(small())
    state["stage3.0.attn.k_conv.weight"] = state["stage3.0.attn.q_conv.weight"]
    torch.save({"model": state}, tmp_path / "tied.pth")
    imported = read_published(tmp_path / "tied.pth", small())
    write_weights(tmp_path / "weights", imported.state, small(), {})
    written = load_file(tmp_path / "weights" / "model.safetensors")
    attention = "backbone.stages.2.blocks.0.attn"
    assert torch.equal(written[f"{attention}.k.synapse.weight"], written[f"{attention}.q.synapse.weight"])


def test_a_deeper_network_is_another_architecture_too(tmp_path: Path) -> None:
    deeper = BACKBONES["qkformer-imagenet"].model_copy(update={"depths": (1, 1, 3)})
    torch.save({"model": published(small(deeper))}, tmp_path / "deeper.pth")
    with pytest.raises(WeightsError, match=r"without a place in the network: stage3\.2\."):
        read_published(tmp_path / "deeper.pth", small())
    imported = read_published(tmp_path / "deeper.pth", small(), ignore_unused=True)
    assert all(name.startswith("stage3.2.") for name in imported.unused)
    assert imported.unused


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_what_a_file_brings_is_never_executed(tmp_path: Path) -> None:
    torch.save({"model": published(small()), "extra": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pth")
    with pytest.raises(WeightsError, match=r"more than plain tensors \(it wants to load \w+\.mkdir\), and is not opened"):
        read_published(tmp_path / "bomb.pth", small())
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no checkpoint"),
        (b"<!doctype html>", "is no checkpoint .neither torch's format nor safetensors; it starts with b'<!doctype'"),
        (b"\x80\x04]\x94(K\x01K\x02e.", "cannot be read as tensors"),
        ({"model": {3: torch.zeros(1)}}, "it holds 3, a Tensor"),
        ({"model": {"a": torch.zeros(1), "module.a": torch.ones(1)}}, r"holds a twice, as a and as module\.a; remove one"),
        ({"net": {"a": torch.zeros(1)}, "net_ema": {"a": torch.zeros(1)}}, "holds several networks: net, net_ema; choose one with --key"),
        ({"a\x1b[31m": torch.tensor([float("nan")])}, r"'a\\x1b\[31m' holds values that are not finite"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "a is not a plain dense tensor"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a holds torch.complex64, not floating point"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "a holds torch.int64, not floating point"),
        ({"bn.running_var": torch.tensor([-1.0])}, "bn.running_var holds a negative variance"),
        ([1, 2], "holds a list"),
        ({"model": {"epoch": 3}}, "it holds 'epoch', a int"),
        ({}, "it holds nothing"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_are_no_checkpoints_are_told(tmp_path: Path, content: object, sentence: str) -> None:
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=sentence):
        read_published(path, small())


def test_a_cut_off_checkpoint_is_damaged(tmp_path: Path) -> None:
    torch.save({"model": published(small())}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for suffix in ("pth", "safetensors"):
        (tmp_path / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(WeightsError, match=f"half.{suffix}"):
            read_published(tmp_path / f"half.{suffix}", small())


def test_start_refuses_what_does_not_fit_and_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_weights(tmp_path / "weights", TDFormer(small()).state_dict(), small(), {})
    for config, names in (
        (small("spikformer-imagenet"), "holds another backbone than the run's .*family: qkformer -> spikformer"),
        (small(BACKBONES["qkformer-imagenet"].model_copy(update={"num_heads": 4})), "num_heads: 2 -> 4; nothing was loaded"),
        (small(num_classes=6), "of another shape .*backbone.head.weight"),
        (small(feedback=None), "without a place in the network: .*control"),
    ):
        model = TDFormer(config)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(WeightsError, match=names):
            start_from(model, tmp_path / "weights")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_are_not_written_over_anything(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists and is not empty; nothing is overwritten"):
        write_weights(tmp_path / "taken", {}, small(), {})
    with pytest.raises(UserError, match="cannot be written"):
        write_weights(tmp_path / ("x" * 300), {}, small(), {})
    with pytest.raises(AttributeError):
        write_weights(tmp_path / "broken", {"x": None}, small(), {})  # type: ignore[dict-item]
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "thesis.tex"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_whole_network_is_read_back_to_the_same_logits(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = small(backbone, feedback=FeedbackConfig(control="cm2", processing="v3", init_std=0.3))
    model = TDFormer(config)
    lively(model)
    model.train()(images(2))
    write_weights(tmp_path / "weights", model.state_dict(), config, {"run": "x"})
    again = load_pretrained(tmp_path / "weights")
    assert torch.equal(again(images(2)), model.eval()(images(2)))
    assert {name: buffer.tolist() for name, buffer in again.named_buffers()} == {name: b.tolist() for name, b in model.named_buffers()}


def test_timm_reads_exported_weights_by_name(tmp_path: Path) -> None:
    model = timm.create_model("tdformer_sdt2_256")
    model.train()(images(2))
    write_weights(tmp_path / "weights", model.state_dict(), model.config, {})
    again = timm.create_model("tdformer_sdt2_256", checkpoint_path=str(tmp_path / "weights" / "model.safetensors"))
    assert torch.equal(again.eval()(images(2)), model.eval()(images(2)))
    assert load_file(tmp_path / "weights" / "model.safetensors").keys() == model.state_dict().keys()


def test_a_damaged_folder_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_weights(tmp_path / "weights", TDFormer(small()).state_dict(), small(), {})
    path = tmp_path / "weights" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"is damaged: it does not match the SHA-256 in config\.json"):
        load_pretrained(tmp_path / "weights")


def test_our_own_network_is_not_imported_again(tmp_path: Path) -> None:
    save_file(TDFormer(small()).state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(WeightsError, match=r"holds a TDFormer of this program, .* as `init`"):
        read_published(tmp_path / "own.safetensors", small())


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "is no weights folder"),
        ("{", "is no weights folder"),
        ('{"format": "other", "model": {}}', "has the format 'other', this program reads"),
        ("[" * 100_000, "is no weights folder"),
        (
            '{"format": "tdformer weights 2", "model": {"time_steps": 3}}',
            "can be made:\n.*time_steps must be a multiple",
        ),
        ('{"format": "tdformer weights 2", "model": 3}', "holds no network that can be made"),
    ],
)
def test_a_folder_that_is_none_is_told(tmp_path: Path, config: str | None, sentence: str) -> None:
    write_weights(tmp_path / "weights", {"x": torch.zeros(1)}, small(), {})
    assert json.loads((tmp_path / "weights" / "config.json").read_text())["format"] == "tdformer weights 2"
    if config is None:
        (tmp_path / "weights" / "config.json").unlink()
    else:
        (tmp_path / "weights" / "config.json").write_text(config)
    with pytest.raises(UserError, match=sentence):
        load_pretrained(tmp_path / "weights")
