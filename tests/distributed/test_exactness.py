"""A run has the same bits on any number of ranks, at any ZeRO stage, under any recompute policy, and through changes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import STEPS, STEPS_PER_EPOCH, ReferenceRun, bits, curve, cut_back, resume, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("ranks", "how"),
    [
        (1, {"zero_stage": 0}),
        (2, {"zero_stage": 1, "offload": "optimizer"}),
        (3, {"zero_stage": 2, "recompute": "block_segment"}),
        (3, {"zero_stage": 3, "offload": "all", "recompute": "segment"}),
    ],
    ids=["one rank", "offloaded optimizer", "stage 2", "stage 3"],
)
def test_ranks_zero_stage_and_recompute_change_no_bit_of_a_run(
    reference_for_three: ReferenceRun, tmp_path: Path, ranks: int, how: dict[str, object]
) -> None:
    """The reference run is one of two ranks at stage 1."""
    reference = reference_for_three
    other = train(reference.config(tmp_path, **how), tmp_path, ranks=ranks)
    assert curve(other) == curve(reference.run)
    for step in range(1, STEPS + 1):
        assert bits(other, step) == bits(reference.run, step), step


def test_a_run_that_goes_on_elsewhere_changes_no_bit(reference_for_three: ReferenceRun, tmp_path: Path) -> None:
    """Three ranks at stage 3 go on after a crash, then two ranks at stage 1 after another one. (test_resume resumes at stages 0 and 2.)"""
    reference = reference_for_three
    first = reference.copy_cut_after(5, tmp_path / "first")
    assert f"resumed at step 5 of {STEPS}" in resume(first, "training.zero_stage=3", "training.recompute=block", ranks=3).stdout
    second = cut_back(first, tmp_path / "first" / "second", 7)
    assert f"resumed at step 7 of {STEPS}" in resume(second, "training.zero_stage=1", "training.recompute=block", ranks=2).stdout
    for run in (first, second):
        assert bits(run) == bits(reference.run)
        assert curve(run) == curve(reference.run)


def test_fused_kernels_keep_that_promise(reference: ReferenceRun, tmp_path: Path) -> None:
    """One epoch. Its first step, which no schedule has changed yet, tells whether these kernels were in use."""
    one, two = tmp_path / "one", tmp_path / "two"
    fused = train(reference.config(one, epochs=1, zero_stage=0, kernels="fused"), one)
    other = train(reference.config(two, epochs=1, zero_stage=3, kernels="fused", recompute="block_segment"), two, ranks=2)
    assert bits(other, STEPS_PER_EPOCH) == bits(fused, STEPS_PER_EPOCH)
    assert curve(other) == curve(fused)
    first, of_plain = curve(fused)[0], curve(reference.run)[0]
    assert (first["step"], first["train/lr"]) == (of_plain["step"], of_plain["train/lr"])
    assert first != of_plain
