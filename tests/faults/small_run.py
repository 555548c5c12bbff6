"""The smallest real run: two epochs of four steps that can be done by one, two, three or six ranks, in a second or two of computing."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import StripesSource, stored, write_config
from tests.distributed.starter import tdformer

STEPS, STEPS_PER_EPOCH = 8, 4
LAST = f"step-{STEPS:08d}"
TENSORS = ("model.safetensors", "optimizer.safetensors")
MEASURED = ("step", "train/loss", "train/gradient_norm", "train/lr", "val/loss", "val/top1", "val/top5")
"""What is told of a step or an evaluation, without what a clock measured."""


@dataclass(frozen=True)
class SmallRun:
    """The data, an MLflow database without runs, and one uninterrupted run, to which all others must be equal."""

    folder: Path

    @property
    def reference(self) -> Path:
        return self.folder / "reference" / "run"

    def config(self, folder: Path, **training: Any) -> dict:
        """Of a run of its own, with a database of its own, in `folder`."""
        folder.mkdir(exist_ok=True)
        shutil.copy(self.folder / "mlflow.db", folder / "mlflow.db")
        return {
            "name": "small",
            "output": str(folder / "runs"),
            "seed": 3,
            "data": {"train": str(self.folder / "train"), "val": str(self.folder / "val"), "image_size": 32, "workers": 0},
            "model": {
                "num_classes": 3,
                "time_steps": 2,
                "backbone": {"embed_dims": 32, "num_heads": 2, "depths": [1, 1, 1], "drop_path": 0.2},
                "feedback": {"init_std": 0.02},
            },
            "optimizer": {"base_lr": 0.01, "base_batch": 8, "warmup_epochs": 0.5},
            "training": {
                "epochs": 2,
                "global_batch": 12,
                "micro_batch": 2,
                "eval_batch": 2,
                "precision": "fp32",
                "zero_stage": 1,
                "clip_grad": 0.3,
                "log_every": 1,
                **training,
            },
            "checkpoint": {"every_steps": 1, "keep_last": 100},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False},
        }

    def copy_cut_after(self, step: int, folder: Path) -> Path:
        """The run directory of the reference as a crash some steps after the checkpoint of `step` would have left it."""
        folder.mkdir(exist_ok=True)
        shutil.copy(self.reference.parent / "mlflow.db", folder / "mlflow.db")
        run = shutil.copytree(self.reference, folder / "run")
        for checkpoint in (run / "checkpoints").glob("step-*"):
            if int(checkpoint.name.removeprefix("step-")) > step:
                shutil.rmtree(checkpoint)
        (run / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")
        return run


def make(folder: Path) -> SmallRun:
    from tdformer.tracking.client import import_mlflow

    stored(StripesSource(50, seed=1), folder / "train")
    stored(StripesSource(11, seed=2), folder / "val")
    import_mlflow().MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    small = SmallRun(folder)
    config = write_config(small.config(small.reference.parent), small.reference.parent)
    result = tdformer("train", config, "--run-dir", small.reference, "--processes", 2)
    assert result.returncode == 0, result.stderr
    return small


def bits(run: Path, checkpoint: str = LAST) -> list[bytes]:
    """Weights, statistics and moments."""
    return [(run / "checkpoints" / checkpoint / name).read_bytes() for name in TENSORS]


def curve(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in MEASURED if name in row} for row in rows]


def tracked(run: Path) -> tuple[list[str], list[tuple[str, int, float]]]:
    """The status of each MLflow run, and all points, sorted, those that are there twice twice. Of the database beside `run`."""
    with closing(sqlite3.connect(run.parent / "mlflow.db")) as database:
        statuses = [status for (status,) in database.execute("SELECT status FROM runs")]
        points = database.execute("SELECT key, step, value FROM metrics ORDER BY key, step").fetchall()
    return statuses, [point for point in points if point[0] in MEASURED]


def difference(run: Path, reference: Path) -> str:
    """In what a finished run differs from the uninterrupted one; empty if in nothing that counts."""
    checks = {
        "weights, statistics or moments": lambda path: bits(path),
        "metrics.jsonl": curve,
        "MLflow": tracked,
        "the best checkpoint": lambda path: (path / "checkpoints" / "best").read_text(),
        "latest": lambda path: (path / "checkpoints" / "latest").read_text(),
        "what is left behind": lambda path: sorted(entry.name for entry in (path / "checkpoints").glob(".*")),
    }
    return ", ".join(name for name, of in checks.items() if of(run) != of(reference))
