"""A setting that does nothing because the run is too short is told, where the run begins and before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tdformer.config import RunConfig
from tdformer.config.learning_rate import schedule_of
from tdformer.config.short_runs import notes_on_length
from tests.conftest import tdformer, write_config

SAMPLES = 1000


def config(**sections: dict[str, Any]) -> RunConfig:
    """A run of ten epochs with ten steps each, about which there is nothing to say."""
    tree: dict[str, Any] = {
        "name": "x",
        "data": {"train": "a", "val": "b"},
        "training": {"epochs": 10, "global_batch": 100, "micro_batch": 10},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return RunConfig.model_validate(tree)


def test_a_usual_run_has_no_notes() -> None:
    usual = config(
        checkpoint={"every_steps": 100, "keep_every": 50},
        training={"log_every": 100, "ema_decay": 0.99},
        profiling={"trace_steps": [99, 100]},
        model={"batch_norm_momentum": 0.03},
    )
    assert notes_on_length(usual, SAMPLES) == []


NOTES: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "warm-up": ({"optimizer": {"warmup_epochs": 50}}, "the learning rate ends at 4.68e-05 and never comes to its peak of 2.34e-04"),
    "warm-up until the end": ({"optimizer": {"warmup_epochs": 10}}, "never comes to its peak"),
    "floor": ({"optimizer": {"min_lr": 1.0}}, "optimizer.min_lr is 1.00e+00, above the peak of 2.34e-04"),
    "log_every": ({"training": {"log_every": 101}}, "training.log_every is 101, and the run has 100 steps: no metrics of training"),
    "mixing": (
        {"data": {"augment": {"mixup": 0.5, "mix_off_epoch": 10}}},
        "data.augment.mix_off_epoch is 10, and training.epochs 10: every epoch is mixed",
    ),
    "every_steps": (
        {"checkpoint": {"every_steps": 101}},
        "checkpoint.every_steps is 101, and the run has 100 steps: only the ends of epochs",
    ),
    "keep_every": ({"checkpoint": {"keep_every": 1000}}, "checkpoint.keep_every is 1000, and the run has 100 steps, 10 per epoch"),
    "keep_every between the ends of epochs": ({"checkpoint": {"keep_every": 33}}, "make it a multiple of 10, and at most 100"),
    "keep_every between checkpoints": ({"checkpoint": {"keep_every": 33, "every_steps": 8}}, "make it a multiple of 8, and at most 100"),
    "ema_decay": ({"training": {"ema_decay": 0.999}}, "averages over about 1000 steps, and the run has 100 steps"),
    "batch_norm_momentum": ({"model": {"batch_norm_momentum": 0.02}}, "statistics settle in 150 steps, and the run has 100 steps"),
    "trace_steps": ({"profiling": {"trace_steps": [90, 101]}}, "profiling.trace_steps is [90, 101], and the run has 100 steps"),
}


@pytest.mark.parametrize("name", NOTES)
def test_a_note(name: str) -> None:
    sections, expected = NOTES[name]
    (note,) = notes_on_length(config(**sections), SAMPLES)
    assert expected in note
    assert "; lower" in note or "; make" in note or "; raise" in note or "; name" in note


def test_what_is_known_without_the_data_is_told_without_it() -> None:
    assert "never comes to its peak" in notes_on_length(config(optimizer={"warmup_epochs": 50}), None)[0]
    assert notes_on_length(config(training={"log_every": 101}), None) == []
    assert notes_on_length(config(training={"log_every": 101}), 50) == [], "fewer samples than a global batch are an error elsewhere"


@pytest.mark.parametrize("schedule", ["step", "epoch"])
@pytest.mark.parametrize("cooldown", [0, 2])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 3.0, 9.9, 10.0, 12.5, 50.0])
def test_the_highest_learning_rate_is_that_of_the_schedule(warmup: float, cooldown: int, schedule: str) -> None:
    warmup = warmup if schedule == "step" else float(int(warmup))
    run = config(optimizer={"warmup_epochs": warmup, "cooldown_epochs": cooldown, "schedule": schedule})
    known = schedule_of(run, 10)
    assert known.highest == max(map(known.at, range(100)))
    assert schedule_of(run, None).highest == pytest.approx(known.highest, rel=0.011)


@pytest.mark.slow
def test_it_is_told_at_the_start_of_a_run_and_by_describe_and_submit(run_config: dict, tmp_path: Path) -> None:
    run_config["optimizer"]["warmup_epochs"] = 5
    run_config["training"] |= {"epochs": 1, "log_every": 50}
    path = write_config(run_config, tmp_path)
    warmup, log = "optimizer.warmup_epochs is 5, and training.epochs 1", "training.log_every is 50, and the run has 3 steps"
    described = tdformer("describe", path)
    submitted = tdformer("submit", path, "--gpus-per-node", 0, "--dry-run", "--sweep", "seed=[1, 2]")
    for ended in (described, submitted):
        assert ended.returncode == 0, ended.stderr
        lines = [line for line in ended.stderr.splitlines() if line.startswith("note: ")]
        assert len([line for line in lines if warmup in line]) == 1
        assert len([line for line in lines if log in line]) == 1
    assert submitted.stdout.startswith("#!/usr/bin/env bash\n")
    as_json = json.loads(tdformer("describe", path, "--json").stdout)
    assert as_json["highest_lr"] == pytest.approx(as_json["peak_lr"] * 3 / 16)
    assert as_json["lr_by_epoch"] == pytest.approx([as_json["peak_lr"] * 2 / 16])
    assert "by epoch" not in described.stdout
    assert len(as_json["notes"]) == 3
    trained = tdformer("train", path, "--run-dir", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    for note in as_json["notes"]:
        assert f"\n{note}\n" in trained.stdout


@pytest.mark.slow
def test_describe_says_that_it_did_not_see_the_data(run_config: dict, tmp_path: Path) -> None:
    path = write_config(run_config, tmp_path)
    described = tdformer("describe", path, "data.train=nowhere")
    assert described.returncode == 0
    told = "note: data.train is nowhere, which is not on this machine: the data was not checked, and "
    assert f"{told}its size and the number of steps are not known\n" in described.stderr
    assert (
        f"{told}data.train_samples stands for its size\n"
        in tdformer("describe", path, "data.train=nowhere", "data.train_samples=26").stderr
    )
