"""Checkpoints on disk: whole or named as damaged; old ones go, the best one stays."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from data_pipelines.errors import UnavailableError
from data_pipelines.storage.files import sha256
from tdformer.checkpoint import format as format_module
from tdformer.checkpoint import store
from tdformer.checkpoint.format import Checkpoint, CheckpointError, check, load_optimizer, read_train_state
from tdformer.checkpoint.store import RetentionPolicy
from tdformer.checkpoint.train_state import Snapshot, TrainState
from tdformer.models.weights import WeightsError, load_exactly
from tdformer.rundir.run_dir import RunDir
from tests.unit.conftest import no_file_is_opened

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml")


def state(step: int) -> Snapshot:
    tensor = torch.full((3,), float(step))
    return Snapshot(TrainState(step=step, world_size=2), {"w": tensor}, {"exp_avg.w": tensor, "exp_avg_sq.w": tensor.clone()})


def save(run_dir: RunDir, step: int, *, is_best: bool = False, retention: RetentionPolicy | None = None) -> Checkpoint:
    return store.save(run_dir, state(step), "name: x\n", is_best=is_best, retention=retention or RetentionPolicy(last=2))


def names(run_dir: RunDir) -> list[str]:
    return sorted(path.name for path in run_dir.checkpoints.iterdir())


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    (tmp_path / "run").mkdir()
    return RunDir(tmp_path / "run")


def test_what_is_saved_is_read_back(run_dir: RunDir) -> None:
    checkpoint = save(run_dir, 7)
    assert check(checkpoint) == TrainState(step=7, world_size=2)
    assert store.find(run_dir.path) == store.find(run_dir.checkpoints) == store.find(checkpoint.path) == checkpoint
    assert torch.equal(load_optimizer(checkpoint)["exp_avg.w"], torch.full((3,), 7.0))


def test_a_run_that_lost_its_checkpoints_does_not_begin_anew(run_dir: RunDir, tmp_path: Path) -> None:
    assert not store.can_resume(run_dir)
    save(run_dir, 7)
    assert store.can_resume(run_dir)
    run_dir.checkpoints.rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=rf"last one was step-00000007; put {run_dir.checkpoints} back, or start a new run"):
        store.can_resume(run_dir)
    (tmp_path / "away").rename(run_dir.checkpoints)
    assert store.can_resume(run_dir)


def test_a_file_in_the_place_of_the_checkpoints_is_told_at_the_start(run_dir: RunDir) -> None:
    run_dir.checkpoints.write_text("mine")
    with pytest.raises(CheckpointError, match="checkpoints is no folder; move it away"):
        store.can_resume(run_dir)


def test_a_removed_run_directory_is_not_made_again(run_dir: RunDir) -> None:
    run_dir.path.rmdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(run_dir, 1)
    assert not run_dir.path.exists()


def test_nothing_is_written_once_another_process_has_the_run(run_dir: RunDir) -> None:
    """The answer may change while the files are written, which takes long. What is there then stays, and no name appears."""
    save(run_dir, 1)
    before = {path: path.read_bytes() for path in run_dir.path.rglob("*") if path.is_file()}
    for answers in ([False], [True, False], [True, True, False]):
        with pytest.raises(CheckpointError, match="its run directory is gone, or another process trains it"):
            store.save(run_dir, state(2), "name: x\n", is_best=True, may_write=iter(answers).__next__)
        assert {path: path.read_bytes() for path in before} == before
    assert len(list(run_dir.checkpoints.glob("step-*"))) == 2, "the third time, it was lost after the checkpoint had got its name"


def test_the_last_ones_and_the_best_one_are_kept(run_dir: RunDir) -> None:
    for step in range(1, 6):
        save(run_dir, step, is_best=step == 2)
    assert sorted(path.name for path in run_dir.checkpoints.glob("step-*")) == ["step-00000002", "step-00000004", "step-00000005"]
    assert store.find(run_dir.path, "best").name == "step-00000002"
    assert store.find(run_dir.path).name == "step-00000005"


def test_saving_a_step_again_replaces_it_and_leaves_no_partial_folder(run_dir: RunDir) -> None:
    (run_dir.checkpoints / ".partial-step-00000003").mkdir(parents=True)
    save(run_dir, 3)
    save(run_dir, 3, is_best=True)
    assert names(run_dir) == ["best", "latest", "step-00000003"]


def test_every_nth_is_kept(run_dir: RunDir) -> None:
    for step in range(1, 10):
        save(run_dir, step, retention=RetentionPolicy(last=1, every=3))
    assert names(run_dir) == ["latest", "step-00000003", "step-00000006", "step-00000009"]


def test_a_crash_while_a_step_is_saved_again_loses_neither(run_dir: RunDir) -> None:
    """The old checkpoint has a hidden name between the two renames. The next start gives it its name back."""
    checkpoint = save(run_dir, 3)
    checkpoint.path.rename(run_dir.checkpoints / ".replaced-step-00000003")
    assert store.latest_valid(run_dir)[0] == checkpoint
    assert names(run_dir) == ["latest", "step-00000003"]


def test_the_newest_whole_checkpoint_is_gone_on_from_and_the_damaged_ones_are_named(run_dir: RunDir) -> None:
    for step in (1, 2, 3):
        save(run_dir, step, retention=RetentionPolicy(last=3))
    Checkpoint.of_step(run_dir.checkpoints, 3).model.write_bytes(b"")
    Checkpoint.of_step(run_dir.checkpoints, 2).manifest.unlink()
    checkpoint, train_state, told = store.latest_valid(run_dir)
    assert (checkpoint.name, train_state.step) == ("step-00000001", 1)
    assert ["step-00000003 is damaged" in told[0], "step-00000002 is incomplete" in told[1]] == [True, True]


def test_a_run_goes_back_to_the_checkpoint_that_latest_names(run_dir: RunDir) -> None:
    for step in (1, 2, 3):
        save(run_dir, step, retention=RetentionPolicy(last=3))
    run_dir.latest.write_text("step-00000002\n")
    assert store.latest_valid(run_dir)[0].name == "step-00000002"


@pytest.mark.parametrize("latest", ["", "../elsewhere", "step-00000009\n", None])
def test_a_lost_pointer_loses_no_checkpoint(run_dir: RunDir, latest: str | None) -> None:
    save(run_dir, 4)
    if latest is None:
        run_dir.latest.unlink()
    else:
        run_dir.latest.write_text(latest)
    checkpoint, _, told = store.latest_valid(run_dir)
    assert (checkpoint.name, len(told)) == ("step-00000004", 1)


@pytest.mark.parametrize("content", [b"", b"\xff../../etc", b"step-00000001"])
def test_a_damaged_pointer_to_the_best_one_is_written_anew(run_dir: RunDir, content: bytes) -> None:
    save(run_dir, 1)
    save(run_dir, 2, is_best=True)
    (run_dir.checkpoints / "best").write_bytes(content)
    assert store.latest_valid(run_dir)[1].step == 2
    assert store.find(run_dir.path, "best").name == "step-00000002"
    (run_dir.checkpoints / "best").write_bytes(content)
    save(run_dir, 3)
    assert store.find(run_dir.path).name == "step-00000003"


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again(run_dir: RunDir) -> None:
    for step in (1, 2):
        save(run_dir, step).optimizer.unlink()
    assert store.has_any(run_dir)
    with pytest.raises(CheckpointError, match=r"no checkpoint of .*run is whole; restore one .*optimizer\.safetensors is missing"):
        store.latest_valid(run_dir)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named_with_the_remedy(run_dir: RunDir, name: str) -> None:
    save(run_dir, 1)
    checkpoint = save(run_dir, 2)
    (checkpoint.path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"step-00000002 is incomplete: .*{name}.* go on from step-00000001"):
        check(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_flipped_file_is_named(run_dir: RunDir, name: str) -> None:
    checkpoint = save(run_dir, 2)
    whole = (checkpoint.path / name).read_bytes()
    (checkpoint.path / name).write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=f"{name} has {len(whole) - 1} bytes instead of {len(whole)}.* No other checkpoint"):
        check(checkpoint)
    (checkpoint.path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{name} does not match its SHA-256"):
        check(checkpoint)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": {}}', '{"files": {"model.safetensors": 3}}'])
def test_a_damaged_manifest_is_told(run_dir: RunDir, text: str) -> None:
    checkpoint = save(run_dir, 2)
    checkpoint.manifest.write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        check(checkpoint)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2, "step": "many"}', '{"version": 2, "classes": 3}', "[" * 100_000])
def test_a_position_that_is_none_is_told(run_dir: RunDir, text: str) -> None:
    checkpoint = save(run_dir, 2)
    checkpoint.state.write_text(text)
    with pytest.raises(CheckpointError, match=r"is damaged: its state\.json cannot be read"):
        read_train_state(checkpoint)


def test_another_format_version_is_told(run_dir: RunDir) -> None:
    checkpoint = save(run_dir, 2)
    checkpoint.state.write_text(json.dumps({"version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        read_train_state(checkpoint)


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


# --- what cannot be read now -------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_read_now_is_not_damaged_and_no_older_one_takes_its_place(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(run_dir, step)
    really = sha256

    def failing(path: Path) -> str:
        if path.parent.name == "step-00000002":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return really(path)

    monkeypatch.setattr(format_module, "sha256", failing)
    with pytest.raises(UnavailableError, match=r"step-00000002/.* cannot be read now \(Stale file handle\)"):
        store.latest_valid(run_dir)
    monkeypatch.undo()
    assert store.latest_valid(run_dir)[0].step == 2


def test_too_many_open_files_damage_no_checkpoint(run_dir: RunDir) -> None:
    checkpoint = save(run_dir, 1)
    actions = (
        lambda: check(checkpoint),
        lambda: store.latest_valid(run_dir),
        lambda: load_optimizer(checkpoint),
        lambda: store.find(run_dir.path),
    )
    for action in actions:
        with no_file_is_opened(), pytest.raises(UnavailableError, match="Too many open files"):
            action()
    assert store.latest_valid(run_dir)[0] == checkpoint


def test_a_listing_that_fails_never_makes_a_run_begin_anew(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run_dir, 1)
    run_dir.latest.unlink()
    with no_file_is_opened(), pytest.raises(UnavailableError, match="Too many open files"):
        store.has_any(run_dir)
    assert store.has_any(run_dir)
