"""Says how far a study is, and what came out: settings compared with a reference, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdformer.config.schema import RunConfig
from tdformer.config.study import StudyConfig
from tdformer.runs import reader, study_records
from tdformer.runs.comparison import Spread, spread
from tdformer.runs.paired import Paired, paired
from tdformer.runs.states import State
from tdformer.runs.study_records import StudyRecord

BySeed = dict[int, StudyRecord]


@dataclass(frozen=True)
class SettingResult:
    """What came out of one setting over its finished runs."""

    name: str
    values: dict[int, float]
    """The last value of the metric, by seed."""
    spread: Spread | None
    difference: Paired | None
    """The difference to the reference. None for the reference itself, and below two common seeds."""
    by_epoch: list[tuple[int, Paired]]
    """The difference after each epoch."""
    hours: float | None
    """Mean hours of a run, times its processes."""


@dataclass(frozen=True)
class StudyResult:
    """How far a study is, and what its finished runs say."""

    study: StudyConfig
    states: dict[str, dict[int, State]]
    """The state of each run, by setting and seed."""
    settings: list[SettingResult]
    records: dict[str, BySeed]
    """What each finished run said, by setting and seed."""
    kept: set[str] = field(default_factory=set)
    """The names of the runs whose records are in the folder of results."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what finished runs lack."""

    @property
    def finished(self) -> int:
        return sum(state == "finished" for states in self.states.values() for state in states.values())

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the records, ready for JSON."""
        return {
            "study": self.study.name,
            "metric": self.study.metric,
            "reference": self.study.reference,
            "states": self.states,
            "settings": [
                {
                    **vars(setting),
                    "spread": setting.spread and vars(setting.spread),
                    "difference": setting.difference and vars(setting.difference),
                    "by_epoch": [{"epoch": epoch, **vars(pair)} for epoch, pair in setting.by_epoch],
                }
                for setting in self.settings
            ],
        }


def read_study(study: StudyConfig, configs: Mapping[str, RunConfig], results: Path | None = None) -> StudyResult:
    """Read the runs of a study that are there.

    results: a folder with records of finished runs, whose run directories may be gone. Raises UserError if a record or a run directory
    is of another study.
    """
    kept = study_records.read_all(results, study.runs()) if results else {}
    notes: list[str] = []
    records: dict[str, BySeed] = {name: {} for name in study.settings}
    states: dict[str, dict[int, State]] = {name: {} for name in study.settings}
    for planned in study.runs():
        run = reader.read(planned.path, [study.metric]) if planned.path.is_dir() else None
        record = kept.get(planned.path.name)
        if results and record:
            study_records.check_same(record.config, configs[planned.setting], results / f"{record.name}.json")
        if run and run.config:
            study_records.check_same(study_records.deciding_of(run.config), configs[planned.setting], planned.path)
        if run and run.state == "finished" and not record:
            record = study_records.record_of(planned, run, study.metric)
        if record and record.last(study.metric) is None:
            notes.append(f"{record.name} has no {study.metric}")
        states[planned.setting][planned.seed] = "finished" if record else run.state if run else "new"
        if record:
            records[planned.setting][planned.seed] = record
    against = records[study.reference]
    settings = [_result(study, name, of_setting, against) for name, of_setting in records.items()]
    return StudyResult(study, states, settings, records, set(kept), notes)


def _result(study: StudyConfig, name: str, records: BySeed, against: BySeed) -> SettingResult:
    values, others = (
        {seed: value for seed, record in each.items() if (value := record.last(study.metric)) is not None} for each in (records, against)
    )
    is_reference = name == study.reference
    hours = [record.hours for record in records.values() if record.hours is not None]
    return SettingResult(
        name,
        values,
        spread(list(values.values())),
        None if is_reference else paired(values, others),
        [] if is_reference else _by_epoch(study.metric, records, against),
        statistics.fmean(hours) if hours else None,
    )


def _by_epoch(metric: str, records: BySeed, against: BySeed) -> list[tuple[int, Paired]]:
    """Return the difference after each epoch that two settings have in common."""
    curves = [{seed: record.curves.get(metric, {}) for seed, record in of_setting.items()} for of_setting in (records, against)]
    epochs = sorted({epoch for of_setting in curves for curve in of_setting.values() for epoch in curve})
    found = [
        (epoch, paired(*({seed: curve[epoch] for seed, curve in each.items() if epoch in curve} for each in curves))) for epoch in epochs
    ]
    return [(epoch, pair) for epoch, pair in found if pair is not None]


def warnings_on(result: StudyResult) -> Sequence[str]:
    """Return what a reader of the result should know: runs that are lacking, and settings of other cost."""
    total = len(result.study.settings) * len(result.study.seeds)
    remarks = [f"{total - result.finished} of {total} runs are not finished"] if result.finished < total else []
    remarks += result.notes
    reference = next(setting for setting in result.settings if setting.name == result.study.reference)
    for setting in result.settings:
        if setting.hours and reference.hours and abs(setting.hours / reference.hours - 1) > 0.1:
            percent = 100 * (setting.hours / reference.hours - 1)
            remarks.append(f"a run of {setting.name} took {percent:+.0f} % of the time of one of {reference.name}")
    return remarks
