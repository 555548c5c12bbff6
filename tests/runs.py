"""One way to start a small run: a tiny configuration, one uninterrupted reference run of it, and what is compared between two runs."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import yaml

from tests.distributed.starter import tdformer
from tests.stripes import StripesSource, stored

STEPS, STEPS_PER_EPOCH = 8, 4
"""The reference run's length: two epochs of the 50 samples in global batches of 12."""
TENSORS = ("model.safetensors", "optimizer.safetensors", "ema.safetensors")
MEASURED = ("step", "train/loss", "train/gradient_norm", "train/lr", "val/loss", "val/top1", "val/top5")
"""The metrics that two equal runs have in common. Those that a clock measured are left out."""


# --- the configuration ---------------------------------------------------------------------------------------


def tiny_config(data: Path, folder: Path, empty_mlflow: Path, **training: Any) -> dict:
    """The configuration of a run that takes a second or two of computing. Tests change it before they write it.

    `data` holds the sets train and val. The run's MLflow database, a copy of `empty_mlflow`, lies in `folder`.
    `training` replaces keys of the section of that name.
    """
    folder.mkdir(exist_ok=True)
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    return {
        "name": "tiny",
        "output": str(folder / "runs"),
        "seed": 3,
        "data": {"train": str(data / "train"), "val": str(data / "val"), "image_size": 32, "workers": 0},
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
            "micro_batch": 6,
            "eval_batch": 6,
            "precision": "fp32",
            "zero_stage": 1,
            "clip_grad": 0.3,
            "log_every": 1,
            **training,
        },
        "checkpoint": {"every_steps": 1, "keep_last": 100},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False},
    }


def write_config(config: dict, folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


# --- starting ------------------------------------------------------------------------------------------------


def train(config: dict, folder: Path, *overrides: str, ranks: int = 1) -> Path:
    """Train to the end in `folder`/run, and return that run directory. A run that fails, fails the test."""
    folder.mkdir(exist_ok=True)
    finished("train", write_config(config, folder), *overrides, "--run-dir", folder / "run", "--processes", ranks)
    return folder / "run"


def resume(run: Path, *overrides: str, ranks: int = 1) -> CompletedProcess[str]:
    """Go on with a run, with other settings if it may, until its end."""
    return finished("train", run, *overrides, "--processes", ranks)


def finished(*arguments: object) -> CompletedProcess[str]:
    """Run a command that must succeed."""
    result = tdformer(*arguments)
    assert result.returncode == 0, result.stderr
    return result


@dataclass(frozen=True)
class ReferenceRun:
    """A training and a validation set, an MLflow database without runs, and one uninterrupted run in `folder`. They are read only."""

    folder: Path
    empty_mlflow: Path
    micro_batch: int = 6
    """6: one or two ranks can do the run. 2: one, two, three or six ranks can, and it takes three times as long."""

    @property
    def run(self) -> Path:
        return self.folder / "reference" / "run"

    def config(self, folder: Path, **training: Any) -> dict:
        """The reference run's configuration, for a run with a database of its own in `folder`.

        All that draws random numbers is on: drop path, augmentation, mixup and cutmix.
        """
        config = tiny_config(self.folder, folder, self.empty_mlflow, micro_batch=self.micro_batch, **training)
        config["data"]["augment"] = {"mixup": 0.8, "cutmix": 1.0, "auto_augment": "rand-m9-mstd0.5-inc1"}
        config["model"]["backbone"]["depths"] = [1, 1, 2]
        return config

    def copy_cut_after(self, step: int, folder: Path) -> Path:
        """Copy the run into `folder`/run as a crash some steps after the checkpoint of `step` would have left it, with its database.

        The copy tracks in that database: the reference run's own is read only.
        """
        folder.mkdir(exist_ok=True)
        shutil.copy(self.run.parent / "mlflow.db", folder / "mlflow.db")
        copy = cut_back(self.run, folder / "run", step)
        config = copy / "config.yaml"
        config.write_text(config.read_text().replace(f"{self.run.parent}/mlflow.db", f"{folder}/mlflow.db"))
        return copy


def cut_back(run: Path, copy: Path, step: int) -> Path:
    """Copy a run directory as a crash some steps after the checkpoint of `step` would have left it, and return the copy."""
    shutil.copytree(run, copy)
    for checkpoint in (copy / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    (copy / "checkpoints" / "latest").write_text(f"{step_name(step)}\n")
    best = copy / "checkpoints" / "best"
    if best.exists() and best.read_text().strip() > step_name(step):
        best.unlink()
    return copy


def make_empty_mlflow(folder: Path) -> Path:
    """Make an MLflow database without runs in `folder`. That takes seconds, and copying it none."""
    from tdformer.tracking.client import import_mlflow

    import_mlflow().MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


def make_reference(folder: Path, empty_mlflow: Path, micro_batch: int = ReferenceRun.micro_batch) -> ReferenceRun:
    """Write the two sets and train the reference run, on two ranks."""
    stored(StripesSource(50, seed=1), folder / "train")
    stored(StripesSource(11, seed=2), folder / "val")
    reference = ReferenceRun(folder, empty_mlflow, micro_batch)
    train(reference.config(reference.run.parent), reference.run.parent, ranks=2)
    return reference


# --- comparing -----------------------------------------------------------------------------------------------


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def bits(run: Path, step: int = STEPS) -> dict[str, bytes]:
    """The weights, statistics, moments and averaged weights of a checkpoint."""
    files = [run / "checkpoints" / step_name(step) / name for name in TENSORS]
    found = {path.name: path.read_bytes() for path in files if path.exists()}
    assert len(found) >= 2, f"{run} has no tensors of step {step}"
    return found


def curve(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl, without what a clock measured."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in MEASURED if name in row} for row in rows]


def tracked(run: Path) -> tuple[list[str], list[tuple[str, int, float]]]:
    """The status of each MLflow run in the database beside `run`, and all points, sorted. A point that was sent twice is there twice."""
    with closing(sqlite3.connect(run.parent / "mlflow.db")) as database:
        statuses = [status for (status,) in database.execute("SELECT status FROM runs")]
        points = database.execute("SELECT key, step, value FROM metrics ORDER BY key, step").fetchall()
    return statuses, [point for point in points if point[0] in MEASURED]


def difference(run: Path, reference: Path, last_step: int = STEPS) -> str:
    """Name what a finished run has otherwise than the uninterrupted one; empty if nothing that counts differs."""
    checks = {
        "weights, statistics or moments": lambda path: bits(path, last_step),
        "metrics.jsonl": curve,
        "MLflow": tracked,
        "the best checkpoint": lambda path: (path / "checkpoints" / "best").read_text(),
        "latest": lambda path: (path / "checkpoints" / "latest").read_text(),
        "what is left behind": lambda path: sorted(entry.name for entry in (path / "checkpoints").glob(".*")),
    }
    return ", ".join(name for name, of in checks.items() if of(run) != of(reference))
