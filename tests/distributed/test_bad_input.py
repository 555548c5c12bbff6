"""What a user gets wrong ends in one sentence and exit code 2, on two processes, without a hang, with nothing overwritten."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from mlflow import MlflowClient

from data_pipelines.loading.open_dataset import open_dataset
from tests.conftest import StripesSource, run_id_of, stored, write_config
from tests.distributed.starter import tdformer
from tests.runs import ReferenceRun

pytestmark = pytest.mark.slow


def assert_one_sentence(result: CompletedProcess[str], *parts: str) -> None:
    """One error line with all parts in it, no traceback, exit code 2."""
    assert result.returncode == 2, result.stdout + result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in errors[0], result.stderr


def fingerprint(folder: Path) -> dict[str, str]:
    """The content of each file, but of the note of who held the lock last."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "last_holder"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def own_data(run_config: dict, tmp_path: Path) -> Path:
    """A copy of the data that the run reads, free to be damaged."""
    folder = tmp_path / "data"
    shutil.copytree(Path(run_config["data"]["train"]).parent, folder)
    run_config["data"] |= {"train": str(folder / "train"), "val": str(folder / "val")}
    return folder


def train(run_config: dict, tmp_path: Path, *arguments: str) -> CompletedProcess[str]:
    return tdformer("train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run", "--processes", 2, *arguments, timeout=300)


def test_missing_data_folder(run_config: dict, tmp_path: Path) -> None:
    run_config["data"]["train"] = str(tmp_path / "nowhere")
    assert_one_sentence(train(run_config, tmp_path), "nowhere does not exist", "tdformer data prepare")


def test_empty_data_folder(run_config: dict, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run_config["data"]["val"] = str(tmp_path / "empty")
    assert_one_sentence(train(run_config, tmp_path), "empty has no manifest.json", "tdformer data prepare")


def test_truncated_shard(run_config: dict, tmp_path: Path, own_data: Path) -> None:
    shard = own_data / "train" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-700])
    assert_one_sentence(train(run_config, tmp_path), "shard-000001.tar", "truncated", "copy it again")


def damage_image(folder: Path, key: str) -> Path:
    """Overwrite what is stored of a sample's image, but for its first 60 bytes. Gives the shard."""
    data = open_dataset(folder)
    (sample,) = (sample for sample in range(len(data)) if data.index.key_of(sample) == key)
    shard = folder / data.manifest.shards[data.index["shard"][sample]].name
    with shard.open("r+b") as file:
        file.seek(int(data.index["offset"][sample]) + 60)
        file.write(bytes(int(data.index["size"][sample]) - 60))
    return shard


def test_undecodable_image_in_the_middle_of_an_epoch(run_config: dict, tmp_path: Path, own_data: Path) -> None:
    """Only the rank that reads it can know; both end. MLflow says FAILED, and what was trained before is kept."""
    shard = damage_image(own_data / "train", "stripes-1-0020")
    run_config["data"]["workers"] = 1
    run_config["training"]["epochs"] = 4
    result = train(run_config, tmp_path)
    assert_one_sentence(result, "stripes-1-0020", shard.name, "cannot be decoded", "on rank")
    run_id = run_id_of(tmp_path / "run")
    assert MlflowClient(run_config["tracking"]["uri"]).get_run(run_id).info.status == "FAILED"


def test_labels_outside_the_classes(run_config: dict, tmp_path: Path) -> None:
    run_config["model"]["num_classes"] = 2
    assert_one_sentence(train(run_config, tmp_path), "labels of 3 classes", "model.num_classes", "set it to 3")


def test_a_label_that_the_manifest_does_not_name(run_config: dict, tmp_path: Path, own_data: Path) -> None:
    manifest_path = own_data / "train" / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    manifest["classes"].pop()
    manifest_path.write_text(json.dumps(manifest))
    assert_one_sentence(train(run_config, tmp_path), "has label 2, but the manifest names 2 classes", "shard-00000")


def test_configuration_typo(run_config: dict, tmp_path: Path) -> None:
    result = train(run_config, tmp_path, "training.epocs=3")
    assert_one_sentence(result, "cannot be run")
    assert "training.epocs: unknown key; did you mean epochs?" in result.stderr
    assert not (tmp_path / "run").exists()


def test_global_batch_that_does_not_divide_over_the_processes(run_config: dict, tmp_path: Path) -> None:
    run_config["training"] |= {"global_batch": 6, "micro_batch": 2}
    assert_one_sentence(train(run_config, tmp_path), "got 6 with 2 x 2 = 4", "4 or 8 would fit")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_is_never_saved(run_config: dict, tmp_path: Path) -> None:
    run_config["training"] |= {"log_every": 1000, "clip_grad": None}
    run_config["optimizer"] |= {"base_lr": 1e37, "warmup_epochs": 0}
    assert_one_sentence(train(run_config, tmp_path), "the loss or a gradient is not finite at step 2", "optimizer.base_lr")
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved in ([], ["step-00000001"])  # the loss of the first step is from before the first update


def test_a_resume_on_another_training_set(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["epochs"] = 1
    assert train(run_config, tmp_path).returncode == 0
    stored(StripesSource(20, seed=5), tmp_path / "other")
    result = tdformer("train", tmp_path / "run", f"data.train={tmp_path}/other", "--processes", 2)
    assert_one_sentence(result, "holds 20 samples", "the run began on 26", "give data.train the set that it began on")


def test_an_unknown_augmentation_policy(run_config: dict, tmp_path: Path) -> None:
    run_config["data"]["augment"] = {"auto_augment": "nonsense"}
    assert_one_sentence(train(run_config, tmp_path), "data.augment.auto_augment", "'nonsense'", "rand-m9-mstd0.5-inc1")


def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_one_whole(run_config: dict, tmp_path: Path) -> None:
    """A file in the place of the next checkpoint's folder stands for a disk that does not take it."""
    run_config["training"]["epochs"] = 1
    root = tmp_path / "run" / "checkpoints"
    assert train(run_config, tmp_path).returncode == 0
    before = fingerprint(root / "step-00000002")
    shutil.rmtree(root / "step-00000003")
    (root / "latest").write_text("step-00000002\n")
    (root / "step-00000003").write_text("in the way")
    assert_one_sentence(tdformer("train", tmp_path / "run", "--processes", 2), "step-00000003 cannot be written", "earlier ones are whole")
    assert fingerprint(root / "step-00000002") == before


def test_fewer_samples_than_a_global_batch(run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["global_batch"] = 32
    assert_one_sentence(train(run_config, tmp_path), "holds 26 samples, fewer than training.global_batch (32)")


def test_half_a_data_set(run_config: dict, tmp_path: Path) -> None:
    run_config["data"]["train_samples"] = 27
    assert_one_sentence(train(run_config, tmp_path), "holds 26 samples, data.train_samples says 27")


def test_checkpoints_that_cannot_be_used(run_config: dict, tmp_path: Path) -> None:
    """Checkpoints of another configuration or model are refused, and not overwritten. (tests/faults/test_damage.py has damaged ones.)"""
    run_config["training"]["epochs"] = 1
    run = tmp_path / "run"
    assert train(run_config, tmp_path).returncode == 0
    before = fingerprint(run)

    result = train(run_config, tmp_path, "model.time_steps=4")
    assert_one_sentence(result, "holds a run of another configuration", "model.time_steps: 2 -> 4")

    result = tdformer("evaluate", run, "model.backbone.depths=[1, 1, 2]", "--processes", 2)
    assert_one_sentence(result, "is of another model", "stages.2.blocks.1")
    assert fingerprint(run) == before


def test_a_folder_that_is_no_run_directory(tmp_path: Path) -> None:
    assert_one_sentence(tdformer("train", tmp_path), "is not a run directory: it has no config.yaml")
    assert_one_sentence(tdformer("evaluate", tmp_path), "holds no latest checkpoint")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_folder_that_is_empty_is_named_and_not_its_configuration(run_config: dict, tmp_path: Path, processes: int) -> None:
    run_config["training"]["epochs"] = 1
    assert train(run_config, tmp_path).returncode == 0
    run = tmp_path / "run"
    for entry in (run / "checkpoints" / "step-00000003").iterdir():
        entry.unlink()
    for target in (run, run / "checkpoints", run / "checkpoints" / "step-00000003"):
        result = tdformer("evaluate", target, "--processes", processes)
        assert_one_sentence(result, "step-00000003 is incomplete: it has no manifest.json", "go on from step-00000002")


def test_a_run_that_was_not_evaluated_yet_has_no_best_result(reference: ReferenceRun, tmp_path: Path) -> None:
    run = reference.copy_cut_after(2, tmp_path)
    assert json.loads(tdformer("checkpoint", "inspect", run, "--json").stdout)["best_top1"] is None
    lines = tdformer("checkpoint", "inspect", run).stdout.splitlines()
    assert [line.split() for line in lines if "best top1" in line] == [["best", "top1", "none"]]


def test_a_pointer_that_is_damaged_is_told_and_not_printed(reference: ReferenceRun, tmp_path: Path) -> None:
    run = reference.copy_cut_after(2, tmp_path)
    (run / "checkpoints" / "latest").write_bytes(b"\x1b[31mred\x07\xff\x00" * 9)
    for path in (run / "sessions").iterdir():
        path.write_text(path.read_text().replace('"finished"', '"failed"'))
    shown = tdformer("runs", "show", run)
    assert shown.returncode == 0, shown.stderr
    assert "note: run: checkpoints/latest names no checkpoint\n" in shown.stderr
    assert f"{run / 'checkpoints' / 'latest'} names no checkpoint, and the newest whole one is gone on from" in shown.stdout
    assert not set("\x1b\x07\x00\ufffd") & set(shown.stdout + shown.stderr)
