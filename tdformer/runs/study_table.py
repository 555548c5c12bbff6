"""Lays out the result of a study as a table of texts, which the terminal and the report share."""

from __future__ import annotations

from collections.abc import Sequence

from tdformer.runs import formatting
from tdformer.runs.study import SettingResult, StudyResult


def study_columns(result: StudyResult) -> Sequence[str]:
    """Return the titles of the columns of `study_row`."""
    metric, reference = result.study.metric, result.study.reference
    return ["setting", "runs", f"last {metric}", f"minus {reference}", "95 % interval (t)", "95 % interval (bootstrap)", "hours each"]


def study_row(metric: str, setting: SettingResult) -> list[str]:
    """Return the row of one setting."""
    difference = formatting.paired(metric, setting.difference) if setting.difference else (formatting.NOTHING,) * 3
    return [
        setting.name,
        str(len(setting.values)),
        formatting.spread_of(metric, setting.spread),
        *difference,
        formatting.hours(setting.hours),
    ]
