"""Run directories as training leaves them, with numbers that a test chooses, in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tdformer.config import RunConfig
from tdformer.config.yaml_io import dump_config

BEGAN = 1_790_000_000.0
STEPS_PER_EPOCH = 10
SESSION = {
    **{"began": BEGAN, "seen": BEGAN + 1800, "world_size": 2, "gpus": 2, "device": "NVIDIA H100", "host": "node-1", "first_step": 0},
    **{"step": 40, "status": "finished", "slurm_job": None, "restart": None, "commit": "0123abc"},
}
ALSO_LOGGED = (
    *("train/lr", "train/gradient_norm", "train/data_wait_share", "train/checkpoint_stall_s", "train/peak_memory_mb", "train/mfu"),
    *("time/data_wait_s", "time/forward_s", "time/backward_s", "time/communication_s", "time/optimizer_s"),
    *("firing_rate/patch_embed1", "firing_rate/stage1", "firing_rate/stage2", "firing_rate/stage3", "firing_rate/processing"),
)


def write_run(
    folder: Path,
    *,
    top1: Sequence[float] = (50.0, 70.0, 90.0, 80.0),
    config: Mapping[str, Any] | None = None,
    sessions: Sequence[Mapping[str, Any]] = ({},),
    training_rows: int = 8,
    images_per_s: float = 100.0,
) -> Path:
    """A finished run with one evaluation per value of top1. config: what differs from a small one, a section at a time."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(_dumped(json.dumps(dict(config or {}), sort_keys=True)))
    write_metrics(folder / "metrics.jsonl", top1, training_rows, images_per_s)
    (folder / "sessions").mkdir()
    for number, session in enumerate(sessions, start=1):
        (folder / "sessions" / f"{number:04d}.json").write_text(json.dumps({**SESSION, **session}))
    (folder / "checkpoints").mkdir()
    for name in ("latest", "best"):
        (folder / "checkpoints" / name).write_text("step-00000040\n")
    return folder


def write_metrics(path: Path, top1: Sequence[float], training_rows: int, images_per_s: float) -> None:
    """Rows in the order in which training writes them."""
    epochs, lines = len(top1), []
    total = epochs * STEPS_PER_EPOCH
    training = [(max(round(total * n / training_rows), 1), n / training_rows) for n in range(1, training_rows + 1)]
    rest = dict.fromkeys(ALSO_LOGGED, 0.012345678901234)
    for step, done in training:
        metrics = {"train/loss": 2.5 - 2 * done, "train/images_per_s": images_per_s, **rest}
        lines.append({"step": step, "epoch": step / STEPS_PER_EPOCH, "time": BEGAN + 1800 * done, **metrics})
    for epoch, value in enumerate(top1, start=1):
        metrics = {"val/top1": value, "val/top5": 99.0, "val/loss": 3 - value / 50, "val/top1_segment1": value - 1}
        lines.append({"step": epoch * STEPS_PER_EPOCH, "epoch": epoch, "time": BEGAN + 1800 * epoch / epochs, **metrics})
    lines.sort(key=lambda row: (row["step"], "val/top1" in row))
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))


@cache
def _dumped(changes: str) -> str:
    tree: dict[str, Any] = {"name": "made", "data": {"train": "data/mnist/train", "val": "data/mnist/val"}, "training": {"epochs": 4}}
    for section, value in json.loads(changes).items():
        tree[section] = {**tree.get(section, {}), **value} if isinstance(value, dict) else value
    return dump_config(RunConfig.model_validate(tree))
