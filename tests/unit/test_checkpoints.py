"""Checkpoints on disk: whole or named as damaged; old ones go, the best one stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tdformer.checkpoint import store
from tdformer.checkpoint.format import Checkpoint, CheckpointError
from tdformer.checkpoint.store import RetentionPolicy
from tdformer.checkpoint.train_state import Snapshot, TrainState
from tdformer.models.weights import WeightsError, load_exactly


def state(step: int) -> Snapshot:
    tensor = torch.full((3,), float(step))
    return Snapshot(TrainState(step=step, world_size=2), {"w": tensor}, {"exp_avg.w": tensor, "exp_avg_sq.w": tensor.clone()})


def save(root: Path, step: int, *, is_best: bool = False, keep: RetentionPolicy | None = None) -> Path:
    return store.save(root, state(step), "name: x\n", is_best=is_best, keep=keep or RetentionPolicy(last=2))


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


def test_what_is_saved_is_read_back(root: Path) -> None:
    path = save(root, 7)
    assert store.check(path) == TrainState(step=7, world_size=2)
    assert store.find(root.parent) == store.find(root) == store.find(path) == path
    assert torch.equal(store.load_optimizer(path)["exp_avg.w"], torch.full((3,), 7.0))


def test_the_last_ones_and_the_best_one_are_kept(root: Path) -> None:
    for step in range(1, 6):
        save(root, step, is_best=step == 2)
    assert sorted(path.name for path in root.glob("step-*")) == ["step-00000002", "step-00000004", "step-00000005"]
    assert store.find(root, "best").name == "step-00000002"
    assert store.find(root).name == "step-00000005"


def test_saving_a_step_again_replaces_it_and_leaves_no_partial_folder(root: Path) -> None:
    (root / ".partial-step-00000003").mkdir(parents=True)
    save(root, 3)
    save(root, 3, is_best=True)
    assert names(root) == ["best", "latest", "step-00000003"]


def test_every_nth_is_kept(root: Path) -> None:
    for step in range(1, 10):
        save(root, step, keep=RetentionPolicy(last=1, every=3))
    assert names(root) == ["latest", "step-00000003", "step-00000006", "step-00000009"]


def test_a_crash_while_a_step_is_saved_again_loses_neither(root: Path) -> None:
    """Between the two renames the old one has a hidden name; a start gives it back its own."""
    path = save(root, 3)
    path.rename(root / ".replaced-step-00000003")
    assert store.latest_valid(root.parent)[0] == path
    assert names(root) == ["latest", "step-00000003"]


def test_the_newest_whole_checkpoint_is_gone_on_from_and_the_damaged_ones_are_named(root: Path) -> None:
    for step in (1, 2, 3):
        save(root, step, keep=RetentionPolicy(last=3))
    (root / "step-00000003" / store.MODEL).write_bytes(b"")
    (root / "step-00000002" / store.MANIFEST).unlink()
    checkpoint, train_state, told = store.latest_valid(root.parent)
    assert (checkpoint.name, train_state.step) == ("step-00000001", 1)
    assert ["step-00000003 is damaged" in told[0], "step-00000002 is incomplete" in told[1]] == [True, True]


def test_a_run_goes_back_to_the_checkpoint_that_latest_names(root: Path) -> None:
    for step in (1, 2, 3):
        save(root, step, keep=RetentionPolicy(last=3))
    (root / store.LATEST).write_text("step-00000002\n")
    assert store.latest_valid(root.parent)[0].name == "step-00000002"


@pytest.mark.parametrize("latest", ["", "../elsewhere", "step-00000009\n", None])
def test_a_lost_pointer_loses_no_checkpoint(root: Path, latest: str | None) -> None:
    save(root, 4)
    if latest is None:
        (root / store.LATEST).unlink()
    else:
        (root / store.LATEST).write_text(latest)
    checkpoint, _, told = store.latest_valid(root.parent)
    assert (checkpoint.name, len(told)) == ("step-00000004", 1)


@pytest.mark.parametrize("content", [b"", b"\xff../../etc", b"step-00000001"])
def test_a_damaged_pointer_to_the_best_one_is_written_anew(root: Path, content: bytes) -> None:
    save(root, 1)
    save(root, 2, is_best=True)
    (root / "best").write_bytes(content)
    assert store.latest_valid(root.parent)[1].step == 2
    assert store.find(root, "best").name == "step-00000002"
    (root / "best").write_bytes(content)
    save(root, 3)
    assert store.find(root).name == "step-00000003"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(root: Path) -> None:
    for step in (1, 2):
        (save(root, step) / store.OPTIMIZER).unlink()
    assert store.has_any(root.parent)
    with pytest.raises(CheckpointError, match=r"no checkpoint of .*run is whole; restore one .*optimizer\.safetensors is missing"):
        store.latest_valid(root.parent)


@pytest.mark.parametrize("name", [*store.TENSOR_FILES, store.STATE, store.CONFIG, store.MANIFEST])
def test_a_missing_file_is_named_with_the_remedy(root: Path, name: str) -> None:
    save(root, 1)
    path = save(root, 2)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"step-00000002 is incomplete: .*{name}.* go on from step-00000001"):
        store.check(path)


@pytest.mark.parametrize("name", [*store.TENSOR_FILES, store.STATE, store.CONFIG])
def test_a_truncated_or_flipped_file_is_named(root: Path, name: str) -> None:
    path = save(root, 2)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=f"{name} has {len(whole) - 1} bytes instead of {len(whole)}.* No other checkpoint"):
        store.check(path)
    (path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{name} does not match its SHA-256"):
        store.check(path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": {}}', '{"files": {"model.safetensors": 3}}'])
def test_a_damaged_manifest_is_told(root: Path, text: str) -> None:
    path = save(root, 2)
    (path / store.MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        store.check(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2, "step": "many"}', '{"version": 2, "classes": 3}', "[" * 100_000])
def test_a_position_that_is_none_is_told(root: Path, text: str) -> None:
    path = save(root, 2)
    (path / store.STATE).write_text(text)
    with pytest.raises(CheckpointError, match=r"is damaged: its state\.json cannot be read"):
        store.read_position(path)


def test_another_format_version_is_told(root: Path) -> None:
    path = save(root, 2)
    (path / store.STATE).write_text(json.dumps({"version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        store.read_position(path)


def test_a_folder_without_checkpoints_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no latest checkpoint"):
        store.find(tmp_path)


def test_another_models_weights_are_refused_before_anything_is_changed() -> None:
    model = nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"1 of this model's tensors are not in it \(first: bias\) and it holds 1 .*\(first: gain\)"):
        load_exactly(model, {"weight": torch.ones(2, 2), "gain": torch.ones(1)}, "checkpoint x")
    with pytest.raises(WeightsError, match=r"1 tensors have other shapes .*weight: \[3, 2\], \[2, 2\]"):
        load_exactly(model, {"weight": torch.ones(3, 2), "bias": torch.ones(2)}, "checkpoint x")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
