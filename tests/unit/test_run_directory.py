"""Run directories and the run's own record of its metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from data_pipelines.storage.files import append_line
from tdformer.config import RunConfig
from tdformer.config.yaml_io import dump_config, load_config
from tdformer.rundir import creation, run_lock
from tdformer.rundir.advice import how_to_go_on
from tdformer.rundir.metrics_file import MetricsFile, in_order
from tdformer.rundir.run_dir import RunDir
from tdformer.training.learning_curve import draw_learning_curve


def config(output: Path, **changes: object) -> RunConfig:
    return RunConfig.model_validate({"name": "x", "output": str(output), "data": {"train": "a", "val": "b"}, **changes})


def test_each_new_run_gets_the_next_number(tmp_path: Path) -> None:
    names = [creation.create_next(config(tmp_path)).name for _ in range(3)]
    assert names == ["x-001", "x-002", "x-003"]
    (tmp_path / "x-041").mkdir()
    (tmp_path / "x-y-099").mkdir()  # of another run called x-y
    assert creation.create_next(config(tmp_path)).name == "x-042"


def test_a_claimed_directory_holds_the_resolved_run(tmp_path: Path) -> None:
    creation.claim(RunDir(tmp_path / "run"), config(tmp_path))
    assert load_config(tmp_path / "run" / "config.yaml") == config(tmp_path)


def test_harmless_keys_may_change_on_a_resume_others_may_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    creation.claim(RunDir(run), config(tmp_path))
    changed = config(tmp_path, tracking={"experiment": "other"}, checkpoint={"keep_last": 5})
    creation.claim(RunDir(run), changed)
    assert load_config(run / "config.yaml") == changed
    with pytest.raises(UserError, match=r"another configuration.*Different are: optimizer\.base_lr: 0\.0006 -> 0\.1; seed: 0 -> 1"):
        creation.claim(RunDir(run), config(tmp_path, seed=1, optimizer={"base_lr": 0.1}))
    assert load_config(run / "config.yaml") == changed


def test_a_key_is_not_harmless_because_its_name_begins_like_one(tmp_path: Path) -> None:
    creation.claim(RunDir(tmp_path / "run"), config(tmp_path, data={"train": "a", "val": "b"}))
    creation.claim(RunDir(tmp_path / "run"), config(tmp_path, data={"train": "elsewhere", "val": "b"}))
    with pytest.raises(UserError, match=r"data\.train_samples: None -> 5"):
        creation.claim(RunDir(tmp_path / "run"), config(tmp_path, data={"train": "a", "val": "b", "train_samples": 5}))


def test_a_folder_with_other_things_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty and not a run directory"):
        creation.claim(RunDir(tmp_path), config(tmp_path))


def test_metrics_after_the_resumed_step_are_forgotten_and_a_cut_off_line_is_left(tmp_path: Path) -> None:
    record = MetricsFile(tmp_path / "metrics.jsonl")
    record.append(1, 0.5, {"train/loss": 3.0})
    record.append(2, 1.0, {"train/loss": 2.0})
    record.append(2, 1, {"val/top1": 50.0})
    record.append(3, 1.5, {"train/loss": 1.0})
    with record.path.open("a") as file:
        file.write('{"step": 4, "ep')
    assert [row["step"] for row in record.rows()] == [1, 2, 2, 3]
    record.cut_after(2, evaluated_epochs=1, log_every=1)
    assert [row["step"] for row in record.rows()] == [1, 2, 2]
    record.cut_after(2, evaluated_epochs=0, log_every=1)  # step 2 is saved, its evaluation will be done again
    untimed = [{name: value for name, value in row.items() if name != "time"} for row in record.rows()]
    assert untimed == [{"step": 1, "epoch": 0.5, "train/loss": 3.0}, {"step": 2, "epoch": 1.0, "train/loss": 2.0}]


@pytest.mark.parametrize("damaged", [b"\xff\xfe", b'{"step": 2', b"{}", b"[1]", b"null", b"", b"{" * 5000])
def test_a_damaged_line_costs_no_other_line(tmp_path: Path, damaged: bytes) -> None:
    """A damaged line is kept as it is. So is every row beside it, to the byte."""
    record = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(1, 8):
        record.append(step, step / 4, {"train/loss": 1 / step})
    lines = record.path.read_bytes().splitlines(keepends=True)
    lines[1] = damaged + b"\n"
    record.path.write_bytes(b"".join(lines))
    assert record.cut_after(7, evaluated_epochs=1, log_every=1).unreadable == [2]
    assert record.path.read_bytes() == b"".join(lines)
    assert record.cut_after(5, evaluated_epochs=1, log_every=1).unreadable == [2]
    assert record.path.read_bytes() == b"".join(lines[:5])
    assert [row["step"] for row in record.rows()] == [1, 3, 4, 5]


def test_a_whole_last_row_without_its_end_is_kept(tmp_path: Path) -> None:
    record = MetricsFile(tmp_path / "metrics.jsonl")
    record.append(1, 0.5, {"train/loss": 3.0})
    record.path.write_bytes(record.path.read_bytes().rstrip())
    assert record.cut_after(1, 0, log_every=1).unreadable == []
    record.append(2, 1.0, {"train/loss": 2.0})
    assert [row["step"] for row in record.rows()] == [1, 2]


@pytest.mark.parametrize(
    ("last", "is_kept"),
    [
        (b'{"step": 2, "epoch": 0.5, "tra', True),
        (b'{"step": 2, "epoch": 0.5, "tra\n', True),
        (b"\x00\x00\x00", True),
        (b'{"step": 3, "epoch": 0.5, "tra', False),
        (b'{"step": 2', False),
        (b'{"st', False),
        (b"{", False),
    ],
)
def test_of_a_damaged_last_line_only_what_is_computed_again_is_removed(tmp_path: Path, last: bytes, is_kept: bool) -> None:
    """The run goes on at step 2. A row that a crash cut off before its step ended holds nothing."""
    record = MetricsFile(tmp_path / "metrics.jsonl")
    record.append(1, 0.5, {"train/loss": 3.0})
    whole = record.path.read_bytes()
    record.path.write_bytes(whole + last)
    assert record.cut_after(2, 0, log_every=1).unreadable == ([2] if is_kept else [])
    assert record.path.read_bytes() == (whole + last.rstrip(b"\n") + b"\n" if is_kept else whole)
    record.append(3, 1.0, {"train/loss": 2.0})
    assert [row["step"] for row in record.rows()] == [1, 3]


def test_rows_that_are_missing_before_the_checkpoint_are_noticed(tmp_path: Path) -> None:
    record = MetricsFile(tmp_path / "metrics.jsonl")
    assert record.cut_after(0, 0, log_every=1).gap_from is None
    assert record.cut_after(30, 0, log_every=1).gap_from is None, "no row may have been due"
    assert record.cut_after(30, 1, log_every=10).gap_from == 0, "the file is gone"
    for step in (10, 20, 30):
        record.append(step, step / 100, {"train/loss": 1.0})
    record.append(30, 1, {"val/top1": 50.0})
    for step, gap in ((30, None), (39, None), (50, None), (51, 30), (500, 30)):
        assert record.cut_after(step, 1, log_every=10).gap_from == gap
        assert record.cut_after(step, 1, log_every=1).gap_from == gap, "rows were further apart before"
    with record.path.open("ab") as file:
        file.write(b"damaged\n")
    assert record.cut_after(500, 1, log_every=10).gap_from is None, "the damaged line may have been the row"


def test_a_line_is_not_glued_to_one_that_a_crash_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "file"
    append_line(path, "one")
    path.write_bytes(path.read_bytes() + b"tw")
    append_line(path, "three")
    append_line(path, "four")
    assert path.read_text() == "one\ntw\nthree\nfour\n"


def test_a_configuration_that_was_edited_in_the_run_directory_is_refused(tmp_path: Path) -> None:
    """It is compared with that of the newest checkpoint that has a readable one."""
    run_dir, begun, edited = RunDir(tmp_path / "run"), config(tmp_path), config(tmp_path, seed=5)
    creation.claim(run_dir, begun)
    for step in (1, 2, 3):
        checkpoint = run_dir.checkpoints / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.yaml").write_text(dump_config(begun) if step < 3 else "[damaged")
    creation.check_fits(run_dir, begun)
    run_dir.config.write_text(dump_config(edited))
    way = rf"restore it \(cp {checkpoint.parent}/step-00000002/config.yaml {run_dir.config}\).*Different are: seed: 0 -> 5"
    with pytest.raises(UserError, match=way):
        creation.check_fits(run_dir, edited)
    changed = config(tmp_path, checkpoint={"keep_last": 9})
    run_dir.config.write_text(dump_config(changed))
    creation.check_fits(run_dir, changed)


def test_the_learning_curve_is_drawn_from_any_rows(tmp_path: Path) -> None:
    rows = [{"step": 1, "epoch": 0.5, "train/loss": 3.0}, {"step": 2, "epoch": 1, "val/top1": 50.0, "val/top1_segment1": 40.0}]
    for number, some in enumerate(([], rows[:1], rows)):
        draw_learning_curve(some, tmp_path / f"{number}.png", "title")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_a_place_that_cannot_be_a_run_directory_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "run" / "lock.json").mkdir(parents=True)
    for name in ("file", "run"):
        with pytest.raises(UserError, match=f"run directory .*{name} cannot be locked"):
            run_lock.check_free(RunDir(tmp_path / name))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_pointer_does_not_hide_how_to_go_on(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.checkpoints.mkdir()
    run_dir.config.touch()
    run_dir.latest.write_bytes(b"\xff\xfe\x00\x9d")
    assert f"tdformer train {tmp_path}" in how_to_go_on(run_dir, 1)


@given(st.lists(st.integers(0, 20), max_size=12))
def test_as_few_steps_as_possible_are_out_of_order(steps: list[int]) -> None:
    fits = in_order(steps)
    kept = [step for step, is_kept in zip(steps, fits, strict=True) if is_kept]
    assert kept == sorted(kept)
    longest = max((len(some) for some in rising(steps)), default=0)
    assert len(kept) == longest


def rising(steps: list[int]) -> Iterator[tuple[int, ...]]:
    """All choices of steps, in their order, that never fall."""
    for count in range(len(steps), -1, -1):
        found = [some for some in combinations(steps, count) if list(some) == sorted(some)]
        yield from found
        if found:
            return


@pytest.mark.parametrize(
    "damaged", [{"step": 2000}, {"step": 0}, {"epoch": float("nan")}, {"train/loss": [1]}, {"train/loss": None}, {"step": "3"}]
)
def test_a_row_with_a_wrong_value_costs_no_other_row_and_is_kept(tmp_path: Path, damaged: dict[str, object]) -> None:
    record = MetricsFile(tmp_path / "metrics.jsonl")
    for step in range(1, 8):
        record.append(step, step / 4, {"train/loss": 1 / step})
    rows = [json.loads(line) for line in record.path.read_text().splitlines()]
    rows[2] |= damaged
    record.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = record.path.read_bytes()
    assert record.cut_after(7, 0, log_every=1).unreadable == [3]
    assert record.path.read_bytes() == before
    assert [row["step"] for row in record.rows()] == [1, 2, 4, 5, 6, 7]
