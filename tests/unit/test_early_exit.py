"""Early exit: what a rule gives, and that it is the same on any number of ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_pipelines.errors import UserError
from data_pipelines.loading.batch import PADDING_LABEL, Batch
from data_pipelines.loading.normalisation import Normalisation
from tdformer.inference.early_exit import Answers, Rule, certainty, costs_of, parse_rule, report
from tests.conftest import tdformer
from tests.unit.networks import small
from tests.unit.test_predictor import weights
from tests.unit.thread_ranks import ThreadContext, on_ranks


def test_certainties_are_those_of_their_definitions() -> None:
    p = torch.tensor([[[0.7, 0.2, 0.1]], [[1 / 3, 1 / 3, 1 / 3]]], dtype=torch.float64)
    found = {name: certainty(p.log(), name).flatten().tolist() for name in ("confidence", "margin", "entropy")}  # type: ignore[arg-type]
    entropy = -sum(x * math.log(x) for x in (0.7, 0.2, 0.1))
    assert found["confidence"] == pytest.approx([0.7, 1 / 3])
    assert found["margin"] == pytest.approx([0.5, 0.0])
    assert found["entropy"] == pytest.approx([1 - entropy / math.log(3), 0.0])
    sure = torch.tensor([[[1000.0, 0.0]]])
    assert [certainty(sure, name).item() for name in ("confidence", "margin", "entropy")] == [1, 1, 1]  # type: ignore[arg-type]
    assert certainty(torch.zeros(2, 3, 1), "entropy").tolist() == [[1.0] * 3] * 2


def test_a_threshold_lets_sure_samples_leave() -> None:
    """One sample leaves after the first segment, one after the second, and two leave at the end."""
    sure = np.array([[0.9, 0.1, 0.1], [0.2, 0.8, 0.9], [0.1, 0.1, 0.1], [0.1, 0.2, 0.99]])
    right = np.array([[True, False, False], [False, True, False], [True, True, False], [False, False, True]])
    energy = [{"paper_mj": value, "strict_mj": 10 * value} for value in (1, 2, 3, 4)]
    found = report(right, sure, Rule("confidence", 0.8), costs_of(6, 3, energy))
    assert found["top1"] == 75
    assert found["share_by_segment"] == [0.25, 0.25, 0.5]
    assert found["mean_time_steps"] == (2 + 4 + 6 + 6) / 4
    assert found["mean_paper_mj"] == (3 + 6 + 10 + 10) / 4
    assert found["mean_strict_mj"] == 10 * found["mean_paper_mj"]


@given(
    sure=st.integers(1, 4).flatmap(
        lambda segments: arrays(float, st.tuples(st.integers(2, 30), st.just(segments)), elements=st.floats(0, 1))
    ),
    seed=st.integers(0, 9),
)
def test_a_curve_goes_from_the_first_segment_to_the_last(sure: np.ndarray, seed: int) -> None:
    right, segments = np.random.default_rng(seed).random(sure.shape) < 0.5, sure.shape[1]
    curve = report(right, sure, Rule("confidence", None), costs_of(2 * segments, segments, None))["curve"]
    steps = [point["mean_time_steps"] for point in curve]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (pytest.approx(2), pytest.approx(2 * segments))
    assert curve[0]["top1"] == pytest.approx(100 * right[:, 0].mean())
    assert curve[-1]["top1"] == pytest.approx(100 * right[:, -1].mean())


def test_a_threshold_is_found_on_one_half_and_reported_on_the_other() -> None:
    sure = np.column_stack([np.linspace(0, 1, 100), np.ones(100)])
    right = np.column_stack([sure[:, 0] > 0.3, np.ones(100, bool)])
    found = report(right, sure, Rule("margin", None, 3.0), costs_of(4, 2, None))
    assert (found["chosen_on"], found["samples"]) == (50, 50)
    assert found["mean_time_steps"] == pytest.approx(3, abs=0.1)
    with pytest.raises(UserError, match="--mean-steps 1 cannot be had: the first segment alone takes 2 time steps"):
        report(right, sure, Rule("margin", None, 1.0), costs_of(4, 2, None))


def test_it_is_the_same_on_any_number_of_ranks() -> None:
    torch.manual_seed(0)
    logits_NBK, labels = torch.randn(2, 12, 5), torch.randint(0, 5, (12,))

    def answered(context: ThreadContext) -> list[list[float]]:
        answers = Answers("entropy")
        own = [*range(context.rank, 12, context.world_size)]
        keys = [f"{sample:02d}" for sample in own]
        answers.add(
            Batch(torch.zeros(len(own) + 1), torch.tensor([*labels[own].tolist(), PADDING_LABEL]), [*keys, ""], Normalisation((0,), (1,))),
            torch.cat([logits_NBK[:, own], torch.zeros(2, 1, 5)], 1),
        )
        return [array.tolist() for array in answers.on_all_ranks(context)]

    alone = on_ranks(1, answered)[0]
    assert alone == on_ranks(3, answered)[0] == on_ranks(5, answered)[4]
    assert alone[0] == (logits_NBK.argmax(2) == labels).T.tolist()


@pytest.mark.parametrize(
    ("text", "steps", "sentence"),
    [
        ("confidense", None, "there is no criterion 'confidense'; did you mean confidence"),
        ("margin=2", None, "the threshold must be a number from 0 to 1, got '2'"),
        ("margin=nan", None, "the threshold must be a number from 0 to 1, got 'nan'"),
        ("margin=", None, "the threshold must be a number from 0 to 1, got ''"),
        ("margin=0.5", 2.0, "--exit has a threshold, and --mean-steps looks for one"),
    ],
)
def test_a_rule_that_is_none_is_told(text: str, steps: float | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_rule(text, steps)


@pytest.mark.slow
def test_the_command_reports_and_draws_it(stripes: Path, tmp_path: Path) -> None:
    folder = weights(tmp_path / "weights", small("qkformer-cifar", num_classes=3))
    command = ("evaluate", folder, "--data", stripes / "val", "training.eval_batch=6")
    plain = json.loads(tdformer(*command, "--exit", "confidence=1", "--picture", tmp_path / "a.svg", "--json").stdout)
    assert plain["exit"]["top1"] == pytest.approx(plain["top1"])
    assert plain["exit"]["mean_time_steps"] == 4
    at_once = json.loads(tdformer(*command, "--exit", "confidence=0", "--json", "--processes", 2).stdout)
    assert at_once["exit"]["top1"] == pytest.approx(at_once["top1_by_segment"][0])
    assert at_once["exit"]["curve"] == plain["exit"]["curve"]
    assert "<svg" in (tmp_path / "a.svg").read_text()
    shown = tdformer(*command, "--exit", "margin", "--mean-steps", 3)
    assert "mean time steps" in shown.stdout
    assert "exit chosen on" in shown.stdout
    assert tdformer("analyze", folder, "--data", stripes / "val", "--only", "energy", "--out", tmp_path / "analysis").returncode == 0
    costs = json.loads((tmp_path / "analysis" / "analysis.json").read_text())["parts"]["energy"]["network"]
    with_energy = json.loads(tdformer(*command, "--exit", "margin=1", "--analysis", tmp_path / "analysis", "--json").stdout)
    assert with_energy["exit"]["mean_paper_mj"] == pytest.approx(costs["paper_mj"])
    refused = tdformer(*command, "--exit", "margin", "--analysis", tmp_path)
    assert (refused.returncode, "holds no energy" in refused.stderr) == (2, True)
    refused = tdformer(*command, "--picture", tmp_path / "a.svg")
    assert (refused.returncode, "--picture is for --exit" in refused.stderr) == (2, True)
