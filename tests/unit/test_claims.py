"""The paper's claims judged by the runs of a study: known numbers, signs and margins; and what is lacking."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import UserError
from data_pipelines.storage.sealed_json import write_sealed
from tdformer.analysis.claims import CLAIMS, judge
from tdformer.analysis.result_files import analysis_file, read_analysis, suite_file
from tdformer.analysis.study_report import render, write_study_report
from tdformer.config.schema import RunConfig
from tdformer.config.study import StudyConfig
from tdformer.runs.study import StudyResult, read_study, warnings_on
from tdformer.runs.study_records import StudyRecord, check_same, deciding, read_all, write

SEEDS = (0, 42, 2024)
FEEDBACK = {"plain": False, "topdown": True}


def study() -> StudyConfig:
    return StudyConfig(
        name="s", base=Path("base.yaml"), settings={"plain": {"model.feedback": None}, "topdown": {}}, seeds=SEEDS, output=Path("/nowhere")
    )


def config(setting: str) -> RunConfig:
    feedback = {} if setting == "topdown" else {"feedback": None}
    return RunConfig.model_validate({"name": "x", "data": {"train": "a", "val": "b"}, "model": feedback})


CONFIGS = {name: config(name) for name in FEEDBACK}


def analysis(change: float, information: float, feedback: bool) -> dict[str, Any]:
    """What an analysis says in short: numbers that depend on `change` and `information` in a known way."""
    spread = {"matrix": [[1.0, information], [information, None]], "mean": {"value": information}}
    stage = dict.fromkeys(("spikes", "gaussian", "ksg"), spread)
    norms = {"without feedback": {"stage3": [0.0, 0.0, 1.0, 1.0]}}
    if feedback:
        norms["with feedback"] = {"stage3": [change, change, 1.0, 1.0]}
    own = {
        "topdown_use": {"answers": {"none": {"change": -change}, "of another class": {"change": -2 * change}}},
        "surrogates": {"clamped": {"dead": 0.1}, "unclamped": {"dead": 0.1 + change}},
    }
    moved = {kind: {"change": {"value": change}} for kind in ("rate", "gradient")}
    focus = {"clean": moved, "fog-3": moved} if feedback else {"clean": {kind: {"change": None} for kind in moved}}
    return {
        **(own if feedback else {}),
        "mutual_information": {"stage2": stage, "stage3": stage},
        "time_gradients": {"norms": norms},
        "attention_maps": {"focus": focus},
        "energy": {"paper_mj": 1.0 + change / 100 * feedback, "strict_mj": 2.0 + 0.2 * feedback},
        "corruptions": {"mean_error": 30.0 - change * feedback, "mean_errors": {"fog": 30.0 - change * feedback}, "errors": {}},
    }


def record(setting: str, seed: int, change: float, noise: float = 0.0) -> StudyRecord:
    feedback = FEEDBACK[setting]
    top1 = 80.0 + seed / 1000 + (change + noise if feedback else 0.0)
    curves = {"val/top1": {1: 50.0, 2: top1}, "val/top1_segment1": {1: 40.0, 2: top1 - 0.5 * change}}
    found = analysis(change, 1.0 + change * feedback, feedback)
    return StudyRecord(setting, seed, deciding(CONFIGS[setting]), curves, 1.0, found)


def result(change: float, noise: float = 0.0) -> StudyResult:
    records = {
        setting: {seed: record(setting, seed, change, noise * (-1) ** place) for place, seed in enumerate(SEEDS)} for setting in FEEDBACK
    }
    return replace(read_study(study(), CONFIGS), records=records)


def verdicts(found: StudyResult) -> dict[str, str]:
    return {judgement.claim.name: judgement.verdict for judgement in judge(found, FEEDBACK)}


def test_numbers_of_the_expected_sign_confirm_every_claim() -> None:
    found = verdicts(result(change=0.5))
    assert set(found) == {claim.name for claim in CLAIMS}
    assert found.pop("energy_strict") == "opposite", "10 percent more is not hardly any"
    assert set(found.values()) == {"confirmed here"}


def test_numbers_of_the_other_sign_are_the_opposite() -> None:
    found = verdicts(result(change=-0.5))
    assert found.pop("energy_paper") == "confirmed here", "less energy is hardly more"
    assert set(found.values()) == {"opposite"}


def test_an_interval_that_holds_zero_confirms_nothing() -> None:
    assert verdicts(result(change=0.0, noise=1.0))["accuracy"] == "not confirmed here"
    assert verdicts(result(change=0.5, noise=4.0))["accuracy"] == "not confirmed here"


def test_the_differences_are_those_of_the_numbers() -> None:
    means = {judgement.claim.name: judgement.difference.mean for judgement in judge(result(change=0.5), FEEDBACK)}
    for name, expected in {
        "accuracy": 0.5,
        "second_pass": 0.25,
        "content_none": 0.5,
        "content_class": 1.0,
        "information_ksg": 0.5,
        "gradients_own": 100 * 1.0 / 3.0,
        "clamp": -50.0,
        "attention_rate_clean": 50.0,
        "robustness": -0.5,
    }.items():
        assert means[name] == pytest.approx(expected), name


def test_what_is_lacking_is_left_out() -> None:
    found = result(change=0.5)
    bare = {setting: {seed: replace(each, analysis={}) for seed, each in of.items()} for setting, of in found.records.items()}
    assert set(verdicts(replace(found, records=bare))) == {"accuracy", "second_pass"}
    assert judge(replace(found, records={"plain": {}, "topdown": {}}), FEEDBACK) == []
    one = {setting: {0: of[0]} for setting, of in found.records.items()}
    assert judge(replace(found, records=one), FEEDBACK) == [], "one seed has no interval"


def test_records_come_back_as_they_were_and_are_of_one_study(tmp_path: Path) -> None:
    of_zero = replace(record("topdown", 0, 0.5), config=deciding(CONFIGS["topdown"]))
    write(of_zero, tmp_path)
    assert read_all(tmp_path, study().runs()) == {"topdown-seed-0": of_zero}
    check_same(of_zero.config, CONFIGS["topdown"], tmp_path)
    with pytest.raises(UserError, match=r"is of another study: model\.feedback is – there, and None here; give the study another name"):
        check_same(of_zero.config, CONFIGS["plain"], tmp_path)
    found = read_study(study(), CONFIGS, tmp_path)
    assert (found.finished, found.states["topdown"]) == (1, {0: "finished", 42: "new", 2024: "new"})


def altered(path: Path, change: str) -> None:
    text = path.read_text()
    path.write_text({"deep": "[" * 200_000, "cut": text[:-40], "number": text.replace("50.0", "51.0"), "other": '{"format": 1}'}[change])


@pytest.mark.parametrize("change", ["deep", "cut", "number", "other"])
def test_a_record_that_was_changed_is_told(tmp_path: Path, change: str) -> None:
    path = write(record("topdown", 0, 0.5), tmp_path)
    assert read_study(study(), CONFIGS, tmp_path).finished == 1
    altered(path, change)
    with pytest.raises(UserError, match=r"topdown-seed-0\.json is no record of a study's run \(.*\); remove it, or give another --results"):
        read_study(study(), CONFIGS, tmp_path)


def test_a_renamed_record_does_not_count_for_another_seed(tmp_path: Path) -> None:
    write(record("topdown", 0, 0.5), tmp_path).rename(tmp_path / "topdown-seed-42.json")
    with pytest.raises(UserError, match=r"is the record of topdown, seed 0; give it its name back"):
        read_study(study(), CONFIGS, tmp_path)


def test_a_record_may_be_laid_out_anew_and_may_hold_what_diverged(tmp_path: Path) -> None:
    of_zero = replace(record("topdown", 0, 0.5), curves={"val/top1": {1: 50.0}, "val/loss": {1: float("nan")}})
    path = write(of_zero, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text())))
    found = read_study(study().model_copy(update={"metric": "val/loss"}), CONFIGS, tmp_path)
    assert found.settings[1].spread is not None
    assert math.isnan(found.settings[1].spread.mean)
    lacking = read_study(study().model_copy(update={"metric": "val/top3"}), CONFIGS, tmp_path)
    assert "topdown-seed-0 has no val/top3" in warnings_on(lacking)


def test_the_page_holds_every_verdict_and_replaces_only_its_own(tmp_path: Path) -> None:
    found = result(change=0.5)
    judgements = judge(found, FEEDBACK)
    page = render(found, judgements)
    assert page.count('<td class="n">confirmed here</td>') == len(judgements) - 1
    assert "<h2>Errors on corrupted images</h2>" in page
    write_study_report(found, judgements, tmp_path / "page.html")
    write_study_report(found, judgements, tmp_path / "page.html")
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(UserError, match="is no report of this command"):
        write_study_report(found, judgements, tmp_path / "mine.html")


def test_analyses_are_read_back_in_short(tmp_path: Path) -> None:
    assert read_analysis(tmp_path) == {}
    analysis_file(tmp_path).parent.mkdir()
    parts = {
        "energy": {"network": {"layers": [1], "paper_mj": 2.0}, "baseline": {}},
        "attention_maps": {"network": {"images": [1], "focus": {}}},
    }
    write_sealed(analysis_file(tmp_path), {"data": {"asked": 7}, "parts": parts})
    suite_file(tmp_path).write_text(json.dumps({"data_sets": [{"data_set": "fog-1", "top1": 60.0}, {"data_set": "fog-3", "top1": 40.0}]}))
    assert read_analysis(tmp_path) == {
        "samples": 7,
        "energy": {"paper_mj": 2.0},
        "attention_maps": {"focus": {}},
        "corruptions": {"mean_error": 50.0, "mean_errors": {"fog": 50.0}, "errors": {"fog": {1: 40.0, 3: 60.0}}},
    }


@pytest.mark.parametrize(
    "text", ["{", "5", "[]", '{"data_sets": []}', '{"data_sets": [{"data_set": "fog-1", "top1": "x"}]}', "[" * 200_000]
)
def test_results_of_a_suite_that_are_none_are_told(tmp_path: Path, text: str) -> None:
    analysis_file(tmp_path).parent.mkdir()
    suite_file(tmp_path).write_text(text)
    with pytest.raises(UserError, match=r"corruptions\.json cannot be read .*remove it, and make it again"):
        read_analysis(tmp_path)


@pytest.mark.parametrize("text", ["{", "5", '{"parts": {"energy": null}}', "[" * 200_000], ids=range(4))
def test_an_analysis_that_was_changed_is_told(tmp_path: Path, text: str) -> None:
    analysis_file(tmp_path).parent.mkdir()
    analysis_file(tmp_path).write_text(text)
    with pytest.raises(UserError, match=r"analysis\.json cannot be read .*remove it, and make it again"):
        read_analysis(tmp_path)
