"""A global batch that is no number on one rank: at each ZeRO stage, under each policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipelines.config import DataConfig
from data_pipelines.loading.dataloader import train_sampler
from data_pipelines.loading.open_dataset import open_dataset
from tests.distributed.starter import tdformer
from tests.faults.several import train
from tests.runs import STEPS, ReferenceRun, bits

pytestmark = [pytest.mark.slow]

MAIN = "tests.faults.numbers_worker"
WORLDS = [(0, 2), (1, 2), (2, 2), (3, 2)]
"""(ZeRO stage, ranks), for what depends on where a stage keeps its gradients."""
WHOLE_AND_PARTITIONED = [WORLDS[0], WORLDS[3]]
"""What happens before or after the gradients are used needs only the two extremes."""


def short(reference: ReferenceRun, folder: Path, stage: int, policy: str, epochs: int = 1, limit: int = 10) -> dict:
    return reference.config(folder, zero_stage=stage, on_non_finite=policy, max_non_finite=limit, epochs=epochs)


def spoilt(world_size: int, *steps: int) -> dict[str, str]:
    return {"NAN_RANK": str(world_size - 1), "NAN_STEPS": ",".join(map(str, steps))}


def saved(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def keys_of_step(reference: ReferenceRun, step: int) -> set[str]:
    data = open_dataset(reference.folder / "train")
    config = DataConfig(train=str(reference.folder / "train"), val=str(reference.folder / "val"))
    sampler = train_sampler(config, data, 3, global_batch=12, micro_batch=6, rank=0, world_size=1)
    return {data.index.key_of(sample) for places in sampler.iterate_steps(step - 1, step) for _, sample in places}


@pytest.fixture(scope="module")
def idle(reference: ReferenceRun, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Path]:
    """Runs on one rank in which nothing was done at these steps."""
    runs = {}
    for steps, epochs in {(3,): 1, (5, 6): 2}.items():
        folder = tmp_path_factory.mktemp("idle")
        ended = train(MAIN, 1, short(reference, folder, 0, "raise", epochs), folder, {"IDLE_STEPS": ",".join(map(str, steps))})
        ended.assert_finished()
        runs[steps] = ended.run
    return runs


@pytest.mark.parametrize(("stage", "world_size"), WHOLE_AND_PARTITIONED)
def test_raise_ends_the_run_and_lists_the_samples(reference: ReferenceRun, tmp_path: Path, stage: int, world_size: int) -> None:
    ended = train(MAIN, world_size, short(reference, tmp_path, stage, "raise"), tmp_path, spoilt(world_size, 3))
    listed = ended.run / "non_finite" / "step-00000003.json"
    ended.assert_refused("not finite at step 3", str(listed))
    micro_batches = [one for rank in json.loads(listed.read_text())["ranks"] for one in rank]
    keys = [key for one in micro_batches for key in one["keys"]]
    assert sorted(keys) == sorted(keys_of_step(reference, 3))
    assert saved(ended.run) == [1, 2]


@pytest.mark.parametrize(("stage", "world_size"), WORLDS)
def test_skip_is_a_step_that_does_nothing(
    reference: ReferenceRun, tmp_path: Path, stage: int, world_size: int, idle: dict[tuple[int, ...], Path]
) -> None:
    ended = train(MAIN, world_size, short(reference, tmp_path, stage, "skip"), tmp_path, spoilt(world_size, 3))
    ended.assert_finished()
    assert "not finite at step 3; skipped (1 so far)" in ended.output
    assert saved(ended.run) == saved(idle[3,]) == [1, 2, 3, 4]
    for step in saved(idle[3,]):
        assert bits(ended.run, step) == bits(idle[3,], step), step
    assert bits(ended.run, 3) == bits(ended.run, 2)
    assert bits(ended.run, 4) != bits(ended.run, 3)


def test_skip_does_nothing_in_a_fast_run_either(reference: ReferenceRun, tmp_path: Path) -> None:
    """DeepSpeed drops the step. Its bits depend on the number of ranks, so the idle run has as many."""
    runs = {}
    for name, environment in {"idle": {"IDLE_STEPS": "3"}, "spoilt": spoilt(2, 3)}.items():
        config = short(reference, tmp_path / name, 2, "skip")
        config["training"]["reduction"] = "fast"
        ended = train(MAIN, 2, config, tmp_path / name, environment)
        ended.assert_finished()
        runs[name] = ended.run
    for step in (1, 2, 3, 4):
        assert bits(runs["spoilt"], step) == bits(runs["idle"], step), step
    assert bits(runs["idle"], 4) != bits(runs["idle"], 3)


@pytest.mark.parametrize(("stage", "world_size"), WHOLE_AND_PARTITIONED)
def test_rewind_undoes_the_steps_since_the_checkpoint(
    reference: ReferenceRun, tmp_path: Path, stage: int, world_size: int, idle: dict[tuple[int, ...], Path]
) -> None:
    """The checkpoint is of step 4: what is left is a run in which steps 5 and 6 did nothing."""
    config = short(reference, tmp_path, stage, "rewind", epochs=2)
    config["checkpoint"]["every_steps"] = 6
    ended = train(MAIN, world_size, config, tmp_path, spoilt(world_size, 6))
    ended.assert_finished()
    assert "rewound to the weights of step-00000004" in ended.output
    for step in (4, 6, STEPS):
        assert bits(ended.run, step) == bits(idle[5, 6], step), step


def test_a_resume_after_a_skip(reference: ReferenceRun, tmp_path: Path, idle: dict[tuple[int, ...], Path]) -> None:
    """The run goes on with one rank, from the checkpoint of the skipped step, at which a second bad step has ended it."""
    ended = train(MAIN, 2, short(reference, tmp_path, 3, "skip", limit=1), tmp_path, spoilt(2, 3, 4))
    ended.assert_refused("not finite at step 4", "more than training.max_non_finite (1)")
    assert saved(ended.run)[-1] == 3
    result = tdformer("train", ended.run, "training.zero_stage=1")
    assert result.returncode == 0, result.stderr
    assert bits(ended.run, 4) == bits(idle[3,], 4)
    state = json.loads((ended.run / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert (state["step"], state["updates"], state["non_finite"]) == (4, 3, 1)
