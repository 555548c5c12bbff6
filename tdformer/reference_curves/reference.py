"""Finds the curve that a run is compared with: a published one, a CSV, or that of another run."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.errors import UserError
from tdformer.config.yaml_io import did_you_mean
from tdformer.reference_curves.curve import TOP1, Curve, names, published_curve, read_curve
from tdformer.rundir.metrics_file import MetricsFile
from tdformer.rundir.run_dir import RunDir


def find_reference(reference: str) -> Curve:
    """Return the curve with this name, in this CSV file, or of this run directory. Raises UserError if there is none."""
    if reference in names():
        return published_curve(reference)
    path = Path(reference)
    if path.suffix == ".csv":
        return read_curve(path)
    if RunDir(path).metrics.is_file():
        return _curve_of_run(RunDir(path))
    raise UserError(
        f"training.reference: {reference} is no published curve{did_you_mean(reference, names())}, no CSV file and no run directory "
        f"with metrics (published are {', '.join(names())})."
    )


def _curve_of_run(run_dir: RunDir) -> Curve:
    try:
        rows = MetricsFile(run_dir.metrics).rows()
    except OSError as error:
        raise UserError(f"training.reference: {run_dir.metrics} cannot be read ({error.strerror or error}).") from None
    top1 = {int(row["epoch"]) - 1: float(row["val/top1"]) for row in rows if "val/top1" in row}
    if not top1:
        raise UserError(f"training.reference: {run_dir} has no evaluation yet; choose a run that has.")
    return Curve(run_dir.name, {TOP1: top1})
