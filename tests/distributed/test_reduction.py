"""training.reduction fast: DeepSpeed's own reduction, clipping and dropping of steps, compared with the exact one."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from tdformer.rundir import sessions
from tdformer.rundir.run_dir import RunDir
from tests.distributed.reduction_worker import CASES, GATHERING
from tests.distributed.starter import start_ranks, tdformer
from tests.runs import STEPS, ReferenceRun, bits, curve, cut_back, resume, train

pytestmark = pytest.mark.slow


def test_fast_differs_from_exact_by_rounding_alone_at_every_stage(tmp_path: Path) -> None:
    """Two ranks, two micro-batches each. A step with an infinite loss on one of them is dropped, and changes nothing on both.

    Parameters arrive when they are waited for, so that whatever looks at them without that makes other bits.
    """
    ranks = start_ranks(2, "tests.distributed.reduction_worker", [], tmp_path / "rank", {})
    for rank in ranks:
        assert rank.wait(timeout=500) == 0, rank.output("stderr")
    found = json.loads(ranks[0].output().splitlines()[-1])
    assert found.pop("auto") == {"1": "exact", "2": "fast"}
    assert found.keys() == CASES.keys()
    for name, case in found.items():
        is_bf16 = "communication_dtype" in CASES[name]
        assert case["loss_difference"] < 1e-6, name
        assert case["norm_difference"] < (2**-8 if is_bf16 else 1e-5), name
        least, most = (2**-10, 2**-6) if is_bf16 else (0, 1e-4)
        assert least < case["moment_difference"] < most, name
        assert case["is_same_again"], name
        assert case["drops_bad_steps"], name
        assert case["is_that_of_deepspeeds_gather"] is (True if CASES[name] in GATHERING else None), name


def test_on_other_ranks_fast_losses_differ_as_those_of_weights_that_are_rounded_otherwise(tmp_path: Path) -> None:
    """Another learning rate, or data that are moved by one image, make losses that differ by more: the comparison would notice them."""
    started = {ranks: start_ranks(ranks, "tests.distributed.rounding_worker", [], tmp_path / f"rank{ranks}", {}) for ranks in (1, 2)}
    found = {}
    for ranks, processes in started.items():
        for process in processes:
            assert process.wait(timeout=500) == 0, process.output("stderr")
        found[ranks] = json.loads(processes[0].output().splitlines()[-1])
    plain = found[1].pop("plain")
    distances = {name: mean(abs(one - other) for one, other in zip(losses, plain, strict=True)) for name, losses in found[1].items()}
    controls = [distances.pop(name) for name in ("another rate", "other data")]
    most = 2 * max(distances.values())
    of_two = found[2]["plain"]
    assert of_two[0] == pytest.approx(plain[0], rel=1e-6)
    assert 0 < mean(abs(one - other) for one, other in zip(of_two, plain, strict=True)) < most < min(controls)


def test_a_fast_run_goes_on_to_the_same_bits_on_as_many_ranks(reference: ReferenceRun, tmp_path: Path) -> None:
    """It keeps its reduction on a resume, and says it. Its losses are near those of the exact run until a spike flips."""
    whole = train(reference.config(tmp_path / "whole", reduction="fast"), tmp_path / "whole", ranks=2)
    first, exact = curve(whole)[0], curve(reference.run)[0]
    assert first["train/loss"] == pytest.approx(exact["train/loss"], rel=1e-6)
    assert first["train/gradient_norm"] == pytest.approx(exact["train/gradient_norm"], rel=1e-5)
    assert bits(whole, 1) != bits(reference.run, 1)
    refused = tdformer("train", whole, "training.reduction=exact")
    assert refused.returncode == 2
    assert "holds a run of another configuration" in refused.stderr
    assert "training.reduction: fast -> exact" in refused.stderr
    cut = cut_back(whole, whole.parent / "cut", 3)
    again = resume(cut, ranks=2)
    assert f"resumed at step 3 of {STEPS}" in again.stdout
    assert "gradients are reduced fast, in fp32" in again.stdout
    assert [session.reduction for session in sessions.read_all(RunDir(cut))[0]] == ["fast", "fast"]
    assert bits(cut) == bits(whole)
    assert curve(cut) == curve(whole)
