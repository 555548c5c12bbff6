"""Names the files in which analyses are kept, and reads those of a study's runs back in short. It imports no torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from tdformer.inference.corruptions import summary
from tdformer.runs.study import StudyResult
from tdformer.runs.study_records import StudyRecord, with_analysis

RESULT = "analysis.json"
CORRUPTIONS = "corruptions"
LONG = {"energy": ("layers",), "attention_maps": ("images",), "time_gradients": ("inside_by_layer",)}
"""What is left out of the parts: numbers by layer, and pictures."""


def analysis_folder(run: Path) -> Path:
    """Return the folder of a run's analysis."""
    return run / "analysis"


def analysis_file(run: Path) -> Path:
    return analysis_folder(run) / RESULT


def suite_file(run: Path) -> Path:
    """Return the file of what `tdformer evaluate --suite --json` printed for a run."""
    return analysis_folder(run) / f"{CORRUPTIONS}.json"


def read_analysis(run: Path) -> dict[str, Any]:
    """Return the parts of a run's analysis in short, and its errors on a suite as the part `corruptions`. Empty if it was not analysed.

    Raises UserError for a file that cannot be read.
    """
    analysis, suite = _read(analysis_file(run)), _read(suite_file(run))
    parts = {part: _short(part, found["network"]) for part, found in analysis["parts"].items() if "network" in found} if analysis else {}
    return parts | ({CORRUPTIONS: _errors(suite)} if suite else {})


def with_analyses(result: StudyResult) -> StudyResult:
    """Return a study with the analyses of those runs whose records hold none, from their run directories."""
    paths = {(run.setting, run.seed): run.path for run in result.study.runs()}

    def completed(record: StudyRecord) -> StudyRecord:
        return record if record.analysis else with_analysis(record, read_analysis(paths[record.setting, record.seed]))

    records = {name: {seed: completed(record) for seed, record in of_setting.items()} for name, of_setting in result.records.items()}
    return replace(result, records=records)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it, and make it again: tdformer study FILE --analyze") from None
    return tree


def _short(part: str, found: Any) -> Any:
    left_out = LONG.get(part, ())
    if not isinstance(found, dict):
        return found
    return {name: _short(part, value) for name, value in found.items() if name not in left_out}


def _errors(suite: dict[str, Any]) -> dict[str, Any]:
    found = summary(suite["data_sets"])
    return {name: found[name] for name in ("mean_error", "mean_errors", "errors")}
