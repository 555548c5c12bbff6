"""Writes the page of a study: what came out by setting, and the paper's claims judged seed by seed. One self-contained HTML file."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from tdformer.analysis.claims import CLAIM_COLUMNS, Judgement, claim_row
from tdformer.analysis.page_sections import Figure, Section, Table, render_page
from tdformer.inference.corruptions import published_place
from tdformer.pages import heatmaps, self_contained, svg_charts
from tdformer.pages.svg_charts import Curve
from tdformer.runs.study import BySeed, StudyResult, warnings_on
from tdformer.runs.study_table import study_columns, study_row

GENERATOR = "tdformer study"
ESTIMATORS = {"spikes": "spikes by counts", "gaussian": "canonical correlations", "ksg": "nearest neighbours"}


def write_study_report(result: StudyResult, judgements: Sequence[Judgement], path: Path) -> None:
    """Write the page, over an earlier one. Raises UserError, and writes nothing, if another file is there."""
    check_replaceable(path)
    self_contained.write(path, render(result, judgements), "--html")


def check_replaceable(path: Path) -> None:
    """Raise UserError if another file is there."""
    self_contained.check_replaceable(path, GENERATOR, "--html")


def render(result: StudyResult, judgements: Sequence[Judgement]) -> str:
    """Return the page as text."""
    study = result.study
    sections = [_settings(result), _claims(judgements), _information(result), _robustness(result)]
    return render_page(
        f"Study {study.name}",
        f"{len(study.settings)} settings, {len(study.seeds)} seeds each; {result.finished} of "
        f"{len(study.settings) * len(study.seeds)} runs are finished",
        [section for section in sections if section.tables or section.figures],
        GENERATOR,
        f"Made by {GENERATOR}.",
    )


def _settings(result: StudyResult) -> Section:
    metric, reference = result.study.metric, result.study.reference
    rows = [study_row(metric, setting) for setting in result.settings]
    lines = [
        Curve([(epoch, pair.mean) for epoch, pair in setting.by_epoch], chr(ord("A") + place), f"c{place}", setting.name, is_mean=True)
        for place, setting in enumerate(each for each in result.settings if each.by_epoch)
    ]
    picture = svg_charts.curves(lines, "epoch")
    named = ", ".join(f"{line.tag} {line.title}" for line in lines)
    figures = [Figure(f"{metric} minus that of {reference}, mean over seeds ({named})", picture)] if picture else []
    return Section(
        "Settings",
        "",
        f"The last {metric} of each run, mean ± standard deviation over seeds, and its difference to {reference} paired by seed.",
        "; ".join([*warnings_on(result), "the bootstrap interval is too narrow for few seeds"]) + ".",
        [Table(study_columns(result), rows)],
        figures,
    )


def _claims(judgements: Sequence[Judgement]) -> Section:
    rows = [claim_row(judgement) for judgement in judgements]
    return Section(
        "The paper's claims",
        "",
        "The mean difference over seeds with its paired 95 % t interval. Confirmed here: the whole interval has the expected sign. "
        "Opposite: it has the other one.",
        f"{len(rows)} intervals are judged: of so many, one in twenty misses the truth by chance. Energy is expected to grow by less than "
        "2 percent. A verdict is about this network and this data.",
        [Table(CLAIM_COLUMNS, rows)] if rows else [],
    )


def _information(result: StudyResult) -> Section:
    figures = []
    for name, records in result.records.items():
        found = [record.analysis["mutual_information"] for record in records.values() if "mutual_information" in record.analysis]
        if not found:
            continue
        stage = max(found[0])
        for estimator, title in ESTIMATORS.items():
            matrices = [each[stage][estimator]["matrix"] for each in found]
            steps = range(len(matrices[0]))
            mean = [[_mean([matrix[row][column] for matrix in matrices]) for column in steps] for row in steps]
            figures.append(Figure(f"{name}, {title}, {len(found)} runs", heatmaps.matrix(mean, "bits")))
    return Section(
        "Mutual information between time steps",
        "Figure 1: feedback raises the mutual information of features between time steps.",
        "I(H(t); H(s)) of the last stage in bits, mean over seeds. The report of each run says how it is estimated.",
        "What two steps share rises with anything that makes a network steadier, such as longer training.",
        figures=figures,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _robustness(result: StudyResult) -> Section:
    errors = {name: _errors(records) for name, records in result.records.items()}
    errors = {name: of_setting for name, of_setting in errors.items() if of_setting}
    kinds = sorted({kind for of_setting in errors.values() for kind in of_setting}, key=published_place)
    rows = [[kind, *(f"{of_setting[kind]:.2f}" if kind in of_setting else "" for of_setting in errors.values())] for kind in kinds]
    means = ["mean", *(f"{statistics.fmean(of_setting.values()):.2f}" for of_setting in errors.values())]
    return Section(
        "Errors on corrupted images",
        "Table 7: feedback makes robust.",
        "The error in percent, mean over severities and seeds.",
        "A setting whose seeds were not all analysed is not comparable with the others.",
        [Table(["corruption", *errors], [*rows, means])] if rows else [],
    )


def _errors(records: BySeed) -> dict[str, float]:
    found = [record.analysis["corruptions"]["mean_errors"] for record in records.values() if "corruptions" in record.analysis]
    return {kind: statistics.fmean(each[kind] for each in found) for kind in (found[0] if found else ())}
