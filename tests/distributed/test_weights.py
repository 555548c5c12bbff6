"""Weights in and out by the command: import a published checkpoint, fine-tune from it, export, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tdformer.models import load_pretrained
from tdformer.models.published_names import own_names
from tests.conftest import REPOSITORY, write_config
from tests.distributed.starter import tdformer
from tests.distributed.test_bad_input import assert_one_sentence
from tests.stripes import StripesSource, stored

pytestmark = pytest.mark.slow
REFERENCE = REPOSITORY / "tests" / "reference" / "qkformer_imagenet_tiny.safetensors"


def plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A checkpoint as the public QKFormer code writes it: its own names, 10 classes."""
    state = {f"module.{name[6:]}": plain(tensor) for name, tensor in load_file(REFERENCE).items() if name.startswith("state.")}
    torch.save({"model": state, "epoch": 199}, tmp_path / "published.pth")
    return tmp_path / "published.pth"


@pytest.fixture
def fine_tune(run_config: dict) -> dict:
    """One epoch with a learning rate so small that no weight changes: what is saved is what was started from."""
    run_config["model"]["backbone"] = {"embed_dims": 32, "num_heads": 2, "depths": [1, 2, 2]}
    run_config["optimizer"] = {"base_lr": 1e-30, "min_lr": 0, "weight_decay": 0}
    run_config["training"] |= {"epochs": 1, "recompute": "block_segment"}
    return run_config


def test_published_weights_to_a_fine_tuned_network_and_out_again(fine_tune: dict, published: Path, tmp_path: Path) -> None:
    config = write_config(fine_tune, tmp_path)
    weights, exported = tmp_path / "weights", tmp_path / "exported"

    imported = tdformer("checkpoint", "import", published, weights, "--config", config, "--head", "new", "--json")
    assert imported.returncode == 0, imported.stderr
    report = json.loads(imported.stdout)
    assert "patch_embed1.proj_conv.weight" in report["used"]
    assert sorted(report["unused"]) == ["head.bias", "head.weight"]
    assert {"processing.weight", "backbone.head.weight", "backbone.stages.2.blocks.0.attn.control.td_conv.weight"} <= set(report["missing"])

    trained = tdformer("train", config, f"init={weights}", "--run-dir", tmp_path / "run", "--processes", 2)
    assert trained.returncode == 0, trained.stderr
    assert f"started from the weights in {weights}; {len(report['missing'])} tensors start fresh" in trained.stdout
    weights.rename(tmp_path / "moved")
    assert tdformer("train", tmp_path / "run").returncode == 0, "weights to start from are not read again"
    changed = tdformer("train", tmp_path / "run", f"init={tmp_path / 'moved'}")
    assert_one_sentence(changed, "holds a run of another configuration", "init: ")

    out = tdformer("checkpoint", "export", tmp_path / "run", exported)
    assert out.returncode == 0, out.stderr
    assert "step 3, validation top-1" in out.stdout
    model, state = load_pretrained(exported), load_file(REFERENCE)
    own = model.backbone.state_dict()
    names = own_names(own, model.config.backbone)
    for name in report["used"]:
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(own[names[name]], state[f"state.{name}"].float()), name
    origin = json.loads((exported / "config.json").read_text())["origin"]
    assert origin["classes"] == ["horizontal", "vertical", "diagonal"]
    checkpoint = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "model.safetensors")
    assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in model.state_dict().items())

    again = tdformer("checkpoint", "export", tmp_path / "run", exported)
    assert_one_sentence(again, "exists and is not empty; nothing is overwritten")
    _evaluate_exported(tmp_path / "run", exported, fine_tune["data"]["val"])


def _evaluate_exported(run: Path, exported: Path, val: str) -> None:
    """What is exported evaluates as its run does, also at other sizes and numbers of time steps."""
    for changes in ((), ("data.image_size=48", "model.time_steps=4")):
        of_run, of_weights = (
            json.loads(tdformer("evaluate", *what, "--json", "training.eval_batch=6", *changes).stdout)
            for what in ([run], [exported, "--data", val])
        )
        counted = ("samples", "top1", "top5", "loss", "top1_by_segment", "step")
        assert {name: of_run[name] for name in counted} == {name: of_weights[name] for name in counted}
    assert_one_sentence(tdformer("evaluate", exported), "does not say where the validation set is; name one with --data")
    other = tdformer("evaluate", exported, "--data", val, "model.backbone.mlp_ratio=2")
    assert_one_sentence(other, f"weights {exported} is of another model")


def test_imported_weights_are_evaluated_and_predict(published: Path, run_config: dict, tmp_path: Path) -> None:
    """Their classes have no names: a data set must have as many."""
    run_config["model"] = {
        "backbone": {"embed_dims": 32, "num_heads": 2, "depths": [1, 2, 2]},
        "segments": 1,
        "feedback": None,
        "num_classes": 10,
    }
    config, weights = write_config(run_config, tmp_path), tmp_path / "weights"
    assert tdformer("checkpoint", "import", published, weights, "--config", config).returncode == 0
    refused = tdformer("evaluate", weights, "--data", run_config["data"]["val"])
    assert_one_sentence(refused, "names 3 classes, and the network has 10; give the data set that it was trained for")
    stored(TenStripes(6, seed=1), tmp_path / "ten")
    evaluated = json.loads(tdformer("evaluate", weights, "--data", tmp_path / "ten", "--json").stdout)
    assert (evaluated["weights"], evaluated["samples"]) == (str(weights), 6)
    (tmp_path / "a.png").write_bytes(TenStripes(6, seed=1)[0].data)
    answered = json.loads(tdformer("predict", weights, tmp_path / "a.png", "--json").stdout)
    assert set(answered["predictions"][0]["classes"]) <= {str(number) for number in range(10)}


class TenStripes(StripesSource):
    classes = tuple(f"class {number}" for number in range(10))


def test_what_cannot_be_imported_or_started_from(fine_tune: dict, published: Path, tmp_path: Path) -> None:
    config = write_config(fine_tune, tmp_path)
    refused = tdformer("checkpoint", "import", published, tmp_path / "weights", "--model", "tdformer_sdt2_256")
    assert refused.returncode == 2
    assert "is of another architecture than this sdt (cifar), 256 dims, depths [2], 10 classes; nothing was loaded" in refused.stderr
    assert "patch_embed1.proj_conv.weight" in refused.stderr
    assert not (tmp_path / "weights").exists()
    assert_one_sentence(tdformer("checkpoint", "import", published, tmp_path / "w", "--model", "qkformer_hst10_769"), "did you mean")
    assert_one_sentence(tdformer("checkpoint", "import", published, tmp_path / "w"), "give either --config FILE", "or --model NAME")
    assert_one_sentence(tdformer("checkpoint", "import", tmp_path, tmp_path / "w", "--config", config), "cannot be read: Is a directory")

    started = tdformer("train", config, f"init={tmp_path}/nowhere", "--processes", 2)
    assert started.returncode == 2
    assert started.stderr.count("is no weights folder") == 1, started.stderr
    assert tdformer("train", config, f"init={tmp_path}/nowhere").returncode == 2
    assert list((tmp_path / "runs").iterdir()) == [], "a start that was refused leaves no run"
