"""What all tests share: a small real data set, a small run, and a way to start the command as a user does."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from data_pipelines.formats.manifest import Format
from data_pipelines.formats.sample import RawSample
from data_pipelines.prepare.options import Encoding, PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from data_pipelines.sources.base import Source

REPOSITORY = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped, and counted as such, where there is no GPU."""
    of_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if of_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in of_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device; on a machine that has one: pytest -m gpu"))


def stored(source: Source, folder: Path, format: Format = "wds", *, samples_per_shard: int = 10, seed: int = 0, **storage: Any) -> Path:
    """`source`, written into `folder`. FFCV: as raw pixels in small pages, unless `storage` says otherwise."""
    if format == "ffcv":
        storage = {"mode": "raw", "max_side": 512, **storage}
    prepare_dataset(source, folder, PrepareOptions(Encoding(format, **storage), samples_per_shard, seed))
    return folder


class StripesSource:
    """Generated 32x32 PNG images of three classes: horizontal, vertical and diagonal stripes with noise."""

    classes = ("horizontal", "vertical", "diagonal")
    ignored_files = 0

    def __init__(self, samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return self.samples

    def fingerprint(self) -> str:
        return f"stripes {self.samples} {self.seed}"

    def origin(self, index: int) -> str:
        return f"stripe {index}"

    def __getitem__(self, index: int) -> RawSample:
        random, label = np.random.default_rng([self.seed, index]), index % 3
        rows, columns = np.mgrid[0:32, 0:32] + random.integers(0, 8)
        wave = np.sin((rows, columns, rows + columns)[label] * 0.8)
        pixels = (128 + 90 * wave[..., None] + random.normal(0, 12, (32, 32, 3))).clip(0, 255)
        png = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(png, format="PNG")
        return RawSample(f"stripes-{self.seed}-{index:04d}", "png", png.getvalue(), label)


@pytest.fixture(scope="session")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train (26 samples, 3 shards) and val (11 samples). Read only: damage a copy."""
    folder = tmp_path_factory.mktemp("stripes")
    stored(StripesSource(26, seed=1), folder / "train")
    stored(StripesSource(11, seed=2), folder / "val")
    return folder


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making one takes seconds, copying it none."""
    from tdformer.tracking.client import import_mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    import_mlflow().MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def run_config(tmp_path: Path, stripes: Path, empty_mlflow: Path) -> dict:
    """A run of 2 epochs of 3 steps (global batch 8, 2 samples left out) that takes seconds. For edits before it is written."""
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return {
        "name": "tiny",
        "output": str(tmp_path / "runs"),
        "seed": 3,
        "data": {"train": str(stripes / "train"), "val": str(stripes / "val"), "image_size": 32, "workers": 0},
        "model": {
            "num_classes": 3,
            "backbone": {"embed_dims": 32, "num_heads": 2, "depths": [1, 1, 1], "drop_path": 0.2},
            "feedback": {"init_std": 0.02},
        },
        "optimizer": {"base_lr": 0.01, "base_batch": 8, "warmup_epochs": 0.5},
        "training": {
            "epochs": 2,
            "global_batch": 8,
            "micro_batch": 2,
            "eval_batch": 4,
            "precision": "fp32",
            "zero_stage": 1,
            "clip_grad": 1.0,
            "log_every": 1,
        },
        "checkpoint": {"every_steps": 1, "keep_last": 100},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db", "system_metrics": False},
    }


def run_id_of(run: Path) -> str:
    """Its MLflow run."""
    from tdformer.rundir.run_dir import RunDir
    from tdformer.tracking.run_ids import read_run_id

    run_id = read_run_id(RunDir(run), None)
    assert run_id is not None
    return run_id


def write_config(config: dict, folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def tdformer(*arguments: object, timeout: float = 240, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own. A hang fails the test."""
    return subprocess.run(
        [sys.executable, "-m", "launch", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )
