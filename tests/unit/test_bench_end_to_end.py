"""Tests the bench of loader and network together: its row, its warm-up, and that it leaves no files behind. No speed is asserted."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from data_pipelines.errors import DataError, UserError
from data_pipelines.loading.open_dataset import open_dataset
from tdformer.bench import end_to_end
from tdformer.bench.photographs import NAMES
from tdformer.config import RunConfig
from tdformer.distributed.context import DistContext
from tests.conftest import tdformer, write_config

CPU = "cpu"


def measured(config: dict, tmp_path: Path, *options: object) -> dict:
    """Run the command on eight steps, and return its JSON. With one worker and an accumulation of four, four steps are warm-up."""
    arguments = [write_config(config, tmp_path), "data.workers=1", "init=weights/not_there", "--steps", 8, "--json", *options]
    with TemporaryDirectory() as name:  # tmp_path would be too long for the sockets of loader processes
        result = tdformer("bench", "end-to-end", *arguments, environment={"TMPDIR": name, "CUDA_VISIBLE_DEVICES": ""})
        assert result.returncode == 0, result.stderr
        temporary = Path(name)
        assert list(temporary.rglob("metrics.jsonl")) == list(temporary.rglob("*.db")) == list(temporary.rglob("*.tar")) == []
        assert not list(temporary.glob("tdformer-bench-*"))
    assert not (tmp_path / "runs").exists()
    return json.loads(result.stdout)


def check_row(shown: dict, format: str) -> None:
    assert shown.keys() == {"conditions", "rows"}
    (row,) = shown["rows"]
    assert row.keys() == set(end_to_end.Row.__dataclass_fields__)
    assert (row["config"], row["format"], row["workers"], row["device"]) == ("tiny", format, 1, CPU)
    assert row["steps"] == shown["conditions"]["steps"] - shown["conditions"]["steps_left_out"] == 4
    assert 0 < row["data_wait_s"] < row["seconds_per_step"]
    assert 0 < row["data_wait_share"] < 1
    assert 0 < row["data_wait_share_overall"] < 1
    assert row["images_per_s"] > 0


@pytest.mark.slow
def test_a_run_is_measured_on_its_own_data_and_leaves_nothing_behind(run_config: dict, tmp_path: Path) -> None:
    database = (tmp_path / "mlflow.db").read_bytes()
    check_row(measured(run_config, tmp_path), "wds")
    assert (tmp_path / "mlflow.db").read_bytes() == database


@pytest.mark.slow
def test_a_run_is_measured_on_photographs(run_config: dict, tmp_path: Path) -> None:
    shown = measured(run_config, tmp_path, "--images", 20)
    check_row(shown, "wds")
    assert shown["conditions"]["images"] == 20


@pytest.mark.slow
def test_photographs_take_the_place_of_the_data_and_are_used_again(run_config: dict, tmp_path: Path) -> None:
    config, threads = RunConfig.model_validate(run_config), torch.get_num_threads()
    done: list[int] = []
    changed = end_to_end.with_photographs(config, tmp_path / "set", 20, "wds", progress=done.append)
    assert sum(done) == 2 * 20
    assert torch.get_num_threads() == threads
    assert changed.data.train == changed.data.val
    assert (len(open_dataset(changed.data.train)), changed.model.num_classes) == (20, len(NAMES))
    assert changed.model.backbone == config.model.backbone
    assert end_to_end.with_photographs(config, tmp_path / "set", 20, "wds") == changed
    with pytest.raises(DataError, match="holds another generated set"):
        end_to_end.with_photographs(config, tmp_path / "set", 21, "wds")
    with pytest.raises(UserError, match=r"--images must be at least 9, .* got 5"):
        end_to_end.with_photographs(config, tmp_path / "other", 5, "wds")


@pytest.mark.parametrize(("workers", "micro_batch", "left_out"), [(0, 2, 3), (1, 2, 4), (2, 2, 4), (2, 8, 7), (3, 4, 6), (8, 8, 19)])
def test_batches_loaded_before_the_first_step_are_not_measured(run_config: dict, workers: int, micro_batch: int, left_out: int) -> None:
    """Each worker loads two batches ahead. The global batch has 8 samples."""
    run_config["data"]["workers"], run_config["training"]["micro_batch"] = workers, micro_batch
    config = RunConfig.model_validate(run_config)
    assert end_to_end.warmup_steps(config, world_size=1) == left_out
    end_to_end.check_steps(config, left_out + end_to_end.MIN_POINTS, world_size=1)
    with pytest.raises(UserError, match=f"--steps must be at least {left_out + 3}, got {left_out + 2}: the first {left_out} are left out"):
        end_to_end.check_steps(config, left_out + 2, world_size=1)


def test_a_rare_wait_shows_in_the_overall_share_though_not_in_the_median(run_config: dict) -> None:
    def point(step: int, wait: float) -> dict[str, float]:
        parts = {"forward": 1.0, "backward": 2.0, "communication": 0.5, "optimizer": 0.5, "data_wait": wait}
        return {"step": step, "train/images_per_s": 8 / (4 + wait), **{f"time/{part}_s": seconds for part, seconds in parts.items()}}

    config = RunConfig.model_validate(run_config)
    points = [point(2, 100.0), point(4, 100.0), point(6, 0.0), point(8, 4.0), point(10, 0.0)]
    row = end_to_end._row(config, "wds", points, DistContext(0, 1, torch.device(CPU)))
    assert (row.steps, row.seconds_per_step, row.images_per_s) == (6, 4.0, 2.0)
    assert (row.data_wait_s, row.data_wait_share, row.data_wait_share_overall) == (0.0, 0.0, 4 / 16)


def test_options_of_a_generated_set_need_one(run_config: dict, tmp_path: Path) -> None:
    result = tdformer("bench", "end-to-end", write_config(run_config, tmp_path), "--format", "ffcv")
    assert result.returncode == 2
    assert "--format and --folder are those of a generated set: give --images too" in result.stderr
    assert "Traceback" not in result.stderr
