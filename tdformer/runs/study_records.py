"""StudyRecord: what a finished run of a study said, as one small file that stays when the run directory is gone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage.sealed_json import read_sealed, write_sealed
from tdformer.config.schema import RunConfig
from tdformer.config.study import StudyRun
from tdformer.runs import config_keys
from tdformer.runs.cost import hours_of
from tdformer.runs.flat_config import flat_tree, with_defaults
from tdformer.runs.run import Run

FORMAT = "tdformer study record 1"
VALIDATION = "val/"


@dataclass(frozen=True)
class StudyRecord:
    """The outcome of one run: one setting with one seed."""

    setting: str
    seed: int
    config: dict[str, Any]
    """The values that decide about the result, by dotted keys."""
    curves: dict[str, dict[int, float]]
    """Validation metrics after each epoch, by name."""
    hours: float | None
    """GPU hours, or CPU process hours for a run without a GPU."""
    analysis: dict[str, Any] = field(default_factory=dict)
    """What tdformer.analysis found in the network: its parts, and errors on a corruption suite. Empty: not analysed."""

    @property
    def name(self) -> str:
        return f"{self.setting}-seed-{self.seed}"

    def last(self, metric: str) -> float | None:
        """Return a metric after the last epoch. None if the run does not have it."""
        curve = self.curves.get(metric)
        return curve[max(curve)] if curve else None


def deciding(config: RunConfig) -> dict[str, Any]:
    """Return the values of a configuration that decide about the result, apart from the seed, by dotted keys."""
    return deciding_of(flat_tree(config.model_dump(mode="json")))


def record_of(planned: StudyRun, run: Run, metric: str) -> StudyRecord:
    """Return what a finished run says."""
    names = [name for name in run.metrics.names() if name.startswith(VALIDATION) or name == metric]
    curves = {name: {round(point.epoch): point.value for point in run.metrics.series(name)} for name in names}
    return StudyRecord(planned.setting, planned.seed, deciding_of(run.config), curves, hours_of(run))


def check_same(found: dict[str, Any], config: RunConfig, place: Path) -> None:
    """Raise UserError unless a run or a record is of this configuration, apart from the seed and from what changes no result.

    found: its deciding values. place: where it is.
    """
    planned = deciding(config)
    for key in {**planned, **found}:
        there, here = (flat.get(key, config_keys.ABSENT) for flat in (found, planned))
        if config_keys.canonical(there) != config_keys.canonical(here):
            raise UserError(
                f"{place} is of another study: {key} is {there} there, and {here} here; give the study another name, or move that away."
            )


def write(record: StudyRecord, folder: Path) -> Path:
    """Write a record into a folder. Raises UserError."""
    path = folder / f"{record.name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(path, {"format": FORMAT, **asdict(record)})
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); give another --results folder.") from None
    return path


def read_all(folder: Path, runs: Iterable[StudyRun]) -> dict[str, StudyRecord]:
    """Read the records of planned runs that are there, by name. Raises UserError for a file that is no record, or one of another run."""
    found = {run.path.name: (run, folder / f"{run.path.name}.json") for run in runs}
    return {name: _read(path, run) for name, (run, path) in found.items() if path.exists()}


def with_analysis(record: StudyRecord, analysis: dict[str, Any]) -> StudyRecord:
    return replace(record, analysis=analysis)


def _read(path: Path, run: StudyRun) -> StudyRecord:
    try:
        tree = read_sealed(path)
        if tree.pop("format") != FORMAT:
            raise ValueError("another format")
        curves = {name: {int(epoch): value for epoch, value in curve.items()} for name, curve in tree.pop("curves").items()}
        tree["config"] = deciding_of(with_defaults(tree["config"]))  # keys may have come since it was written
        record = StudyRecord(**tree, curves=curves)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} is no record of a study's run ({reason}); remove it, or give another --results folder.") from None
    if (record.setting, record.seed) != (run.setting, run.seed):
        raise UserError(f"{path} is the record of {record.setting}, seed {record.seed}; give it its name back, or remove it.")
    return record


def deciding_of(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a flat configuration that decide about the result, apart from the seed."""
    return {key: config_keys.value(flat, key) for key in flat if config_keys.decides(key)}
