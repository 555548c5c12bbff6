"""Damage while training, on two processes: `data.on_bad_sample: skip` goes on, tells and counts; the count is limited."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from mlflow import MlflowClient

from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.options import PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from tests.conftest import StripesSource, run_id_of, write_config
from tests.distributed.starter import tdformer
from tests.distributed.test_bad_input import assert_one_sentence

pytestmark = pytest.mark.slow


@pytest.fixture
def bad(run_config: dict, tmp_path: Path) -> str:
    """A training set with one image that cannot be decoded; its key. All 24 visits of an epoch leave out 2 of 26 samples."""
    prepare_dataset(StripesSource(26, seed=1), tmp_path / "train", PrepareOptions(samples_per_shard=10))
    data = open_dataset(tmp_path / "train")
    row = data.index.rows[4]
    shard = tmp_path / "train" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[int(row["offset"]) + 60 : int(row["offset"]) + int(row["size"])] = bytes(int(row["size"]) - 60)
    shard.write_bytes(content)
    run_config["data"] |= {"train": str(tmp_path / "train"), "workers": 1, "on_bad_sample": "skip"}
    run_config["training"]["epochs"] = 2
    return data.index.key_of(4)


def train(run_config: dict, tmp_path: Path, *arguments: str) -> CompletedProcess[str]:
    return tdformer("train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run", "--processes", 2, *arguments)


def counts(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/bad_samples"] for row in rows if "train/bad_samples" in row]


def test_a_skipped_sample_is_told_with_shard_and_key_and_counted(run_config: dict, tmp_path: Path, bad: str) -> None:
    result = train(run_config, tmp_path)
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stdout.splitlines() if line.startswith("skipped: ")]
    assert len(warnings) == 2, "once in each epoch"
    assert all(f"sample {bad} in {tmp_path}/train/shard-000000.tar" in line and "cannot be decoded" in line for line in warnings)
    whole = counts(tmp_path / "run")
    assert len(whole) == 6
    assert whole == sorted(whole)
    assert whole[-1] == len(warnings)
    run_id = run_id_of(tmp_path / "run")
    history = MlflowClient(run_config["tracking"]["uri"]).get_metric_history(run_id, "train/bad_samples")
    assert [point.value for point in history] == whole
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert state["bad_samples"] == whole[-1]


def test_more_than_the_limit_end_the_run_on_all_ranks(run_config: dict, tmp_path: Path, bad: str) -> None:
    run_config["data"]["max_bad_samples"] = 0
    result = train(run_config, tmp_path)
    assert_one_sentence(result, "1 bad samples were skipped, more than data.max_bad_samples (0)", bad)
    assert train(run_config, tmp_path, "data.max_bad_samples=50").returncode == 0


def test_evaluation_skips_nothing(run_config: dict, tmp_path: Path, bad: str) -> None:
    run_config["data"]["val"] = run_config["data"]["train"]
    run_config["training"]["epochs"] = 1
    assert_one_sentence(train(run_config, tmp_path), bad, "cannot be decoded")
