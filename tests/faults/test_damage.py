"""Truncated files and flipped bits in a checkpoint are named; the newest whole one is used; without one nothing is begun or overwritten."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tdformer.checkpoint import store
from tdformer.checkpoint.format import Checkpoint, check
from tdformer.rundir.run_dir import RunDir
from tests.distributed.starter import tdformer
from tests.distributed.test_bad_input import assert_one_sentence, fingerprint
from tests.runs import ReferenceRun, bits, curve, resume

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "manifest.json")


def truncate(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def flip_a_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
@pytest.mark.parametrize("name", FILES)
def test_damage_anywhere_is_found(reference: ReferenceRun, tmp_path: Path, name: str, damage) -> None:  # type: ignore[no-untyped-def]
    """Each file is damaged at forty random places. A manifest whose damage is not found must mean the same as before."""
    run = reference.copy_cut_after(5, tmp_path / "copy")
    path, draw = run / "checkpoints" / "step-00000005" / name, random.Random(f"{name} {damage.__name__}")
    whole, train_state = path.read_bytes(), check(Checkpoint.at(path.parent))
    for _ in range(40):
        damage(path, draw)
        found, at, warnings = store.latest_valid(RunDir(run))
        if name == "manifest.json" and found.path == path.parent:
            assert (at, warnings) == (train_state, [])
        else:
            assert found.name == "step-00000004"
            assert len(warnings) == 1
            assert str(path.parent) in warnings[0]
        path.write_bytes(whole)


@pytest.mark.slow
def test_a_run_goes_on_from_the_newest_whole_checkpoint(reference: ReferenceRun, tmp_path: Path) -> None:
    """The three newest are damaged, each otherwise."""
    run, draw = reference.copy_cut_after(6, tmp_path / "copy"), random.Random(0)
    flip_a_bit(run / "checkpoints" / "step-00000006" / "optimizer.safetensors", draw)
    truncate(run / "checkpoints" / "step-00000005" / "model.safetensors", draw)
    (run / "checkpoints" / "step-00000004" / "manifest.json").unlink()
    output = resume(run, "training.zero_stage=0").stdout
    assert "step-00000006 is damaged: optimizer.safetensors does not match its SHA-256" in output
    assert "step-00000005 is damaged: model.safetensors has" in output
    assert "step-00000004 is incomplete: it has no manifest.json" in output
    assert output.count("Going on from step-00000003.") == 3
    assert bits(run) == bits(reference.run)
    assert curve(run) == curve(reference.run)
    check(store.find(run, "best"))


@pytest.mark.slow
def test_a_run_without_a_whole_checkpoint_is_refused_and_left_as_it_is(reference: ReferenceRun, tmp_path: Path) -> None:
    run, draw = reference.copy_cut_after(2, tmp_path / "copy"), random.Random(0)
    for checkpoint in (run / "checkpoints").glob("step-*"):
        flip_a_bit(checkpoint / "model.safetensors", draw)
    before = fingerprint(run)
    result = tdformer("train", run, "--processes", 2)
    assert_one_sentence(result, "no checkpoint of", "is whole", "restore one from a copy, or start a new run")
    assert fingerprint(run) == before


@pytest.mark.slow
def test_best_is_restored_after_a_crash_before_its_pointer(reference: ReferenceRun, tmp_path: Path) -> None:
    best = (reference.run / "checkpoints" / "best").read_text()
    run = reference.copy_cut_after(int(best.removeprefix("step-")), tmp_path / "copy")
    (run / "checkpoints" / "best").unlink()
    store.latest_valid(RunDir(run))
    assert (run / "checkpoints" / "best").read_text() == best


@pytest.mark.slow
def test_a_record_of_metrics_that_cannot_be_read(reference: ReferenceRun, tmp_path: Path) -> None:
    run = reference.copy_cut_after(5, tmp_path / "copy")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    result = tdformer("train", run, "--processes", 2)
    assert_one_sentence(result, "metrics.jsonl cannot be read and written (Is a directory)", "move it away")
