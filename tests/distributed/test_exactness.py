"""The same run, to the same bits, on any number of ranks, at any ZeRO stage, under any recompute policy, and through changes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import StripesSource, stored, write_config
from tests.distributed.starter import tdformer

STEPS, CUT = 8, 3
FILES = ("model.safetensors", "optimizer.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(StripesSource(50, seed=1), tmp_path_factory.mktemp("fifty") / "train")


@pytest.fixture
def config(run_config: dict, data: Path) -> dict:
    """Two epochs of 4 global batches of 6 micro-batches, with all that draws random numbers, clipped gradients and three blocks."""
    run_config["data"] |= {"train": str(data), "augment": {"mixup": 0.8, "cutmix": 1.0, "auto_augment": "rand-m9-mstd0.5-inc1"}}
    run_config["training"] |= {"global_batch": 12, "micro_batch": 2, "clip_grad": 0.3}
    run_config["model"]["backbone"]["depths"] = [1, 1, 2]
    return run_config


def train(config: dict, folder: Path, ranks: int, **how: object) -> Path:
    folder.mkdir()
    config = {**config, "training": config["training"] | how}
    result = tdformer("train", write_config(config, folder), "--run-dir", folder / "run", "--processes", ranks)
    assert result.returncode == 0, result.stderr
    return folder / "run"


def bits(run: Path, step: int = STEPS) -> list[bytes]:
    return [(run / "checkpoints" / f"step-{step:08d}" / name).read_bytes() for name in FILES]


def curve(run: Path) -> list[dict[str, float]]:
    """What was measured of training and validation, without what a clock measured."""
    told = ("step", "train/loss", "train/gradient_norm", "train/lr", "val/loss", "val/top1", "val/top5")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in told if name in row} for row in rows]


@pytest.mark.slow
def test_ranks_zero_stage_and_recompute_change_no_bit_of_a_run(config: dict, tmp_path: Path) -> None:
    reference = train(config, tmp_path / "reference", ranks=1, zero_stage=0)
    others: list[tuple[int, dict[str, object]]] = [
        (2, {"zero_stage": 1, "offload": "optimizer"}),
        (3, {"zero_stage": 2, "recompute": "block_segment"}),
        (2, {"zero_stage": 3}),
        (3, {"zero_stage": 3, "offload": "all", "recompute": "segment"}),
    ]
    for number, (ranks, how) in enumerate(others):
        other = train(config, tmp_path / f"other-{number}", ranks, **how)
        assert curve(other) == curve(reference), (ranks, how)
        for step in range(1, STEPS + 1):
            assert bits(other, step) == bits(reference, step), (ranks, how, step)

    # And a run that goes on elsewhere, otherwise: three ranks at stage 3, then two at stage 1.
    moved = tmp_path / "moved"
    shutil.copytree(reference, moved)
    for cut, ranks, stage, until in ((CUT, 3, 3, CUT + 2), (CUT + 2, 2, 1, STEPS)):
        for checkpoint in (moved / "checkpoints").glob("step-*"):
            if int(checkpoint.name.removeprefix("step-")) > cut:
                shutil.rmtree(checkpoint)
        (moved / "checkpoints" / "latest").write_text(f"step-{cut:08d}\n")
        (moved / "checkpoints" / "best").unlink(missing_ok=True)
        overrides = [f"training.zero_stage={stage}", "training.recompute=block"]
        result = tdformer("train", moved / "config.yaml", *overrides, "--run-dir", moved, "--processes", ranks)
        assert result.returncode == 0, result.stderr
        assert f"resumed at step {cut} of {STEPS}" in result.stdout
        assert bits(moved, until) == bits(reference, until)
    assert curve(moved) == curve(reference)


@pytest.mark.slow
def test_fused_kernels_keep_that_promise(config: dict, tmp_path: Path) -> None:
    reference = train(config, tmp_path / "reference", ranks=1, zero_stage=0, kernels="fused")
    other = train(config, tmp_path / "other", ranks=3, zero_stage=3, kernels="fused", recompute="block_segment")
    plain = train(config, tmp_path / "plain", ranks=1, zero_stage=0)
    assert bits(other) == bits(reference)
    assert curve(other) == curve(reference)
    assert bits(plain) != bits(reference)  # they were in use
