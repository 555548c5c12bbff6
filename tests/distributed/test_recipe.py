"""The recipe's parts, in real runs: layer decay, averaged weights, LAMB, fp16, a chain of image sizes. To the same bits, as ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_pipelines.storage.files import sha256
from tdformer.checkpoint.format import Checkpoint
from tests.distributed.starter import tdformer
from tests.runs import bits, cut_back, resume, train, write_config

pytestmark = pytest.mark.slow
LAST, CUT = 6, 2


def saved(run: Path, step: int) -> Checkpoint:
    return Checkpoint.of_step(run / "checkpoints", step)


def position(run: Path, step: int = LAST) -> dict[str, Any]:
    return json.loads(saved(run, step).state.read_text())


def measured(run: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def test_layer_decay_and_averages_are_the_same_bits_on_any_ranks_at_any_stage_and_after_a_resume(run_config: dict, tmp_path: Path) -> None:
    run_config["optimizer"]["layer_decay"] = 0.7
    run_config["training"]["ema_decay"] = 0.8
    reference = train(run_config, tmp_path / "one", "training.zero_stage=0")
    assert bits(reference, LAST).keys() == {"model.safetensors", "optimizer.safetensors", "ema.safetensors"}
    for ranks, stage in ((2, 1), (2, 3)):
        other = train(run_config, tmp_path / f"stage{stage}", f"training.zero_stage={stage}", ranks=ranks)
        assert all(bits(other, step) == bits(reference, step) for step in range(1, LAST + 1)), stage
        for name in ("val/top1", "val/top1_ema", "val/loss_ema"):
            assert measured(other, name) == measured(reference, name)
    resumed = cut_back(reference, tmp_path / "moved", CUT)
    resume(resumed, "training.zero_stage=3", ranks=2)
    assert bits(resumed, LAST) == bits(reference, LAST)

    # What was averaged is what each step left behind.
    last, before = (saved(reference, step) for step in (LAST, LAST - 1))
    model, average, average_before = load_file(last.model), load_file(last.ema), load_file(before.ema)
    for name, tensor in average.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.8 * average_before[name] + 0.2 * model[name])
        else:
            assert torch.equal(tensor, model[name])


def test_averaged_weights_are_chosen_by_exported_and_evaluated(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["ema_decay"] = 0.5
    run = train(run_config, tmp_path)
    assert position(run)["best_top1"] == max(measured(run, "val/top1_ema"))
    plain, averaged = (json.loads(tdformer("evaluate", run, "--json", *options).stdout.splitlines()[-1]) for options in ([], ["--ema"]))
    assert plain["loss"] == pytest.approx(measured(run, "val/loss")[-1], rel=1e-6)
    assert averaged["loss"] == pytest.approx(measured(run, "val/loss_ema")[-1], rel=1e-6)
    assert plain["loss"] != averaged["loss"]
    assert tdformer("checkpoint", "export", run, tmp_path / "weights", "--ema").returncode == 0
    assert load_file(tmp_path / "weights" / "model.safetensors").keys() == load_file(saved(run, LAST).ema).keys()

    without = train(run_config, tmp_path / "without", "training.ema_decay=null")
    result = tdformer("evaluate", without, "--ema")
    assert (result.returncode, "holds no averaged weights" in result.stderr) == (2, True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_the_same_bits_at_zero_3_and_after_a_resume(run_config: dict, tmp_path: Path, precision: str) -> None:
    """What is saved is the fp32 parameters at every stage. fp16's loss scale falls at the start if it must, and is no trouble."""
    run_config["training"]["precision"] = precision
    reference = train(run_config, tmp_path / "one", "training.zero_stage=0")
    resumed = cut_back(reference, tmp_path / "resumed", CUT)
    resume(resumed, "training.zero_stage=3", ranks=2)
    assert bits(resumed, LAST) == bits(reference, LAST)
    assert position(resumed)["loss_scale"] == position(reference)["loss_scale"]
    assert position(reference)["non_finite"] == 0
    assert (position(reference)["loss_scale"] is not None) == (precision == "fp16")


def test_an_overflow_of_fp16_lowers_the_scale_and_is_no_trouble(run_config: dict, tmp_path: Path) -> None:
    """After a resume at a scale that is far too large, as if it had grown."""
    run_config["training"] |= {"precision": "fp16", "epochs": 1}
    run = cut_back(train(run_config, tmp_path / "one"), tmp_path / "two", CUT)
    checkpoint = saved(run, CUT)
    state, manifest = (json.loads(path.read_text()) for path in (checkpoint.state, checkpoint.manifest))
    state["loss_scale"]["factor"] = 2.0**40
    checkpoint.state.write_text(json.dumps(state))
    manifest["files"]["state.json"] = {"bytes": checkpoint.state.stat().st_size, "sha256": sha256(checkpoint.state)}
    checkpoint.manifest.write_text(json.dumps(manifest))
    result = resume(run)
    assert "a gradient overflowed at step 3, which is passed over; the loss scale is now 5.49756e+11" in result.stdout
    after = position(run, 3)
    assert (after["loss_scale"]["factor"], after["updates"], after["non_finite"]) == (2.0**39, CUT, 0)


def test_lamb_makes_the_same_bits_on_any_ranks_at_any_stage_and_after_a_resume(run_config: dict, tmp_path: Path) -> None:
    run_config["optimizer"] |= {"name": "lamb", "layer_decay": 0.7}
    reference = train(run_config, tmp_path / "one", "training.zero_stage=0")
    for stage, offload in ((1, "optimizer"), (3, "none")):
        other = train(run_config, tmp_path / f"{stage}", f"training.zero_stage={stage}", f"training.offload={offload}", ranks=2)
        assert all(bits(other, step) == bits(reference, step) for step in range(1, LAST + 1)), stage
    resumed = cut_back(reference, tmp_path / "moved", CUT)
    resume(resumed, "training.zero_stage=2", ranks=2)
    assert bits(resumed, LAST) == bits(reference, LAST)


def test_synced_batch_norm_is_refused_on_a_cpu(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["sync_batch_norm"] = True
    result = tdformer("train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run", "--processes", 2)
    assert (result.returncode, result.stderr.count("training.sync_batch_norm needs a CUDA device")) == (2, 1)


def test_a_chain_of_image_sizes_starts_from_the_run_before(run_config: dict, tmp_path: Path) -> None:
    """Runs at 32, 48 and 64 pixels follow each other, started from a run directory, then from one of its checkpoints."""
    first = train(run_config, tmp_path / "first", "training.epochs=1")
    second = train(run_config, tmp_path / "second", "data.image_size=48", f"init={first}", "optimizer.base_lr=1e-30", "optimizer.min_lr=0")
    before, after = (load_file(saved(run, 3).model) for run in (first, second))
    weights = [name for name in before if "running" not in name and "num_batches" not in name]
    for name in weights:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-20)
    third = train(run_config, tmp_path / "third", "data.image_size=64", f"init={second}/checkpoints/step-00000003", "training.epochs=1")
    assert position(third, 3)["step"] == 3
    result = tdformer("train", write_config(run_config, tmp_path), f"init={tmp_path / 'nothing'}")
    assert (result.returncode, "nothing" in result.stderr) == (2, True)


def test_a_recipe_trains_its_stages_goes_on_where_it_was_and_starts_each_from_the_best_before(run_config: dict, tmp_path: Path) -> None:
    """The second stage fails at first. The best checkpoint of the first stage is made to be the one of step 1."""
    run_config["name"], last = "first", tmp_path / "second.yaml"
    write_config(run_config, tmp_path).rename(tmp_path / "first.yaml")
    above = "base: first.yaml\nafter: first.yaml\nname: second\ndata: {image_size: 48}\noptimizer: {base_lr: 1e-30, min_lr: 0}\n"
    last.write_text(above + "model: {num_classes: 2}\n")
    folder = tmp_path / "runs" / "second-recipe"
    planned = tdformer("recipe", last, "--dry-run", "--json")
    assert [(row["stage"], row["state"], row["starts_from"]) for row in json.loads(planned.stdout)["stages"]] == [
        ("first", "new", "random weights"),
        ("second", "new", str(folder / "first" / "checkpoints" / "best")),
    ]
    assert not folder.exists()
    failed = tdformer("recipe", last)
    assert failed.returncode == 2
    assert "error: stage second ended with exit code 2; mend what it said, and the same command goes on." in failed.stderr
    assert "stage 2 of 2: second" in failed.stdout
    (folder / "first" / "checkpoints" / "best").write_text("step-00000001\n")
    last.write_text(above)
    finished = tdformer("recipe", last)
    assert finished.returncode == 0, finished.stderr
    assert "stage 1" not in finished.stdout
    assert f"started from the weights in {folder}/first/checkpoints/best; 0 tensors start fresh" in finished.stdout
    before, after = load_file(saved(folder / "first", 1).model), load_file(saved(folder / "second", LAST).model)
    for name in (name for name in before if "running" not in name and "num_batches" not in name):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-20)
    shown = json.loads(tdformer("runs", "show", folder, "--json").stdout)["stages"]
    assert [(row["stage"], row["state"], row["epoch"], row["epochs"]) for row in shown] == [
        ("first", "finished", 2, 2),
        ("second", "finished", 2, 2),
    ]
    assert json.loads(tdformer("runs", "show", folder / "second", "--json").stdout)["stages"] == shown
    assert f"It is a stage of the recipe in {folder}" in tdformer("runs", "show", folder / "first").stdout
