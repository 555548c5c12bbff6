"""What training really takes: killed in the middle of an epoch and resumed on another number of processes, the same samples."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from data_pipelines.prepare.options import Encoding, PrepareOptions
from data_pipelines.prepare.prepare_dataset import prepare_dataset
from tests.conftest import StripesSource, write_config
from tests.distributed.starter import Started, start_ranks

SAMPLES, GLOBAL_BATCH, MICRO_BATCH, EPOCHS = 50, 12, 2, 3
STEPS_PER_EPOCH = SAMPLES // GLOBAL_BATCH

Taken = dict[tuple[int, int], list[str]]
"""(step, number of the micro-batch in its global batch) -> keys."""


def start(world_size: int, config: Path, run: Path, data: Path, keys: Path) -> list[Started]:
    keys.mkdir()
    arguments = ["train", config, f"data.train={data}", "--run-dir", run]
    return start_ranks(world_size, "tests.distributed.keys_worker", arguments, keys / "output", {"KEYS": str(keys)})


def finish(processes: list[Started]) -> None:
    for process in processes:
        assert process.wait(timeout=300) == 0, process.output("stderr")


def taken(keys: Path) -> Taken:
    lines = [json.loads(line) for path in keys.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len({(line["step"], line["number"]) for line in lines}) == len(lines)
    return {(line["step"], line["number"]): line["keys"] for line in lines}


def last_saved(run: Path) -> int:
    """The step that a resume goes on from; 0 before the first checkpoint."""
    latest = run / "checkpoints" / "latest"
    return int(latest.read_text().strip().removeprefix("step-")) if latest.exists() else 0


@pytest.mark.slow
@pytest.mark.ffcv
def test_killed_in_an_epoch_and_resumed_by_three_processes_on_the_other_format(run_config: dict, tmp_path: Path) -> None:
    """Two processes train on WebDataset shards. Who goes on takes the samples of the uninterrupted run.

    tests/unit/test_formats.py has the other shuffle, other numbers of processes and other orders of formats, without training.
    """
    wds, ffcv = tmp_path / "wds", tmp_path / "ffcv"
    for folder, storage in ((wds, Encoding("wds")), (ffcv, Encoding("ffcv", mode="raw"))):
        prepare_dataset(StripesSource(SAMPLES, seed=1), folder, PrepareOptions(storage, samples_per_shard=7))
    run_config["data"] |= {"workers": 1, "shuffle": "blocks", "shuffle_window": 3}
    run_config["training"] |= {"epochs": EPOCHS, "global_batch": GLOBAL_BATCH, "micro_batch": MICRO_BATCH}
    config = write_config(run_config, tmp_path)

    finish(start(2, config, tmp_path / "whole", wds, tmp_path / "whole-keys"))
    whole = taken(tmp_path / "whole-keys")
    check_coverage(whole)

    killed = tmp_path / "killed"
    processes = start(2, config, killed, wds, tmp_path / "killed-keys")
    while last_saved(killed) <= STEPS_PER_EPOCH:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    for process in processes:
        process.kill()
    for process in processes:
        process.wait(timeout=60)
    assert taken(tmp_path / "killed-keys").items() <= whole.items()
    resumed_at = last_saved(killed)
    assert resumed_at % STEPS_PER_EPOCH

    finish(start(3, config, killed, ffcv, tmp_path / "resumed-keys"))
    assert taken(tmp_path / "resumed-keys") == {place: keys for place, keys in whole.items() if place[0] >= resumed_at}


def check_coverage(whole: Taken) -> None:
    """Every micro-batch of every step was taken, and within an epoch no sample twice."""
    pieces = GLOBAL_BATCH // MICRO_BATCH
    assert set(whole) == {(step, number) for step in range(EPOCHS * STEPS_PER_EPOCH) for number in range(pieces)}
    for epoch in range(EPOCHS):
        seen = Counter(key for (step, _), keys in whole.items() if step // STEPS_PER_EPOCH == epoch for key in keys)
        assert set(seen.values()) == {1}
        assert len(seen) == STEPS_PER_EPOCH * GLOBAL_BATCH
