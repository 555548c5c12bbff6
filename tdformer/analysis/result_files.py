"""Names the files in which analyses are kept, and reads those of a study's runs back in short. It imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage.sealed_json import parse_json, read_sealed
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

    `samples` is the number of images that was asked for. Raises UserError for a file that cannot be read.
    """
    analysis, suite = _read(analysis_file(run), read_sealed), _read(suite_file(run), _errors)
    if analysis is None:
        return {}
    parts = {part: _short(part, found["network"]) for part, found in analysis["parts"].items() if "network" in found}
    return {"samples": analysis["data"]["asked"], **parts, **({CORRUPTIONS: suite} if suite else {})}


def read_energy(path: Path, segments: int) -> list[dict[str, Any]]:
    """Return what the segments of a network cost, from an analysis: its file, or its folder. The first row is what all segments share.

    Raises UserError if it has none, or that of a network with another number of segments.
    """
    file = path / RESULT if path.is_dir() else path
    try:
        rows = read_sealed(file)["parts"]["energy"]["network"]["segments"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it has no part energy" if isinstance(error, KeyError) else error
        raise UserError(f"{file} holds no energy ({reason}); make it: tdformer analyze RUN --only energy --out {path}") from None
    if len(rows) != segments + 1:
        raise UserError(
            f"{file} is of a network of {len(rows) - 1} segments, and this one has {segments}; give an analysis of this network."
        )
    return rows


def with_own_analysis(record: StudyRecord, run: Path) -> StudyRecord:
    """Return a record with the analysis that lies in its run directory, if it holds none."""
    return record if record.analysis else with_analysis(record, read_analysis(run))


def with_analyses(result: StudyResult) -> StudyResult:
    """Return a study with the analyses of those runs whose records hold none."""
    paths = {(run.setting, run.seed): run.path for run in result.study.runs()}
    records = {
        name: {seed: with_own_analysis(record, paths[name, seed]) for seed, record in of_setting.items()}
        for name, of_setting in result.records.items()
    }
    return replace(result, records=records)


def _read(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read ({reason}); remove it, and make it again: tdformer study FILE --analyze") from None


def _short(part: str, found: Any) -> Any:
    left_out = LONG.get(part, ())
    if not isinstance(found, dict):
        return found
    return {name: _short(part, value) for name, value in found.items() if name not in left_out}


def _errors(path: Path) -> dict[str, Any]:
    """Return the errors that `tdformer evaluate --suite --json` printed. Raises ValueError if there are none."""
    found = summary(parse_json(path.read_text(encoding="utf-8"))["data_sets"])
    if not found:
        raise ValueError("it names no corruption")
    return {name: found[name] for name in ("mean_error", "mean_errors", "errors")}
