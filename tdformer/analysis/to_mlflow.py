"""Sends the results of an analysis to the MLflow run of the network's run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.errors import UserError
from tdformer.config.yaml_io import load_config
from tdformer.inference.networks import Network
from tdformer.rundir.run_dir import RunDir
from tdformer.tracking.client import open_client
from tdformer.tracking.errors import explain
from tdformer.tracking.run_ids import read_run_ids

ARTIFACTS = "analysis"
"""The folder of the files among the artifacts of the MLflow run."""


def mlflow_run_of(network: Network) -> tuple[str, str]:
    """Return the tracking URI and the id of the MLflow run. Raises UserError if the network is of no run, or that run has none."""
    if network.run_dir is None:
        raise UserError(f"{network.path} is of no run here, and so has no MLflow run; analyse a run directory, or leave out --log.")
    run_dir = RunDir(network.run_dir)
    uri = load_config(run_dir.config).tracking.uri
    if (run_id := read_run_ids(run_dir).get(uri)) is None:
        raise UserError(f"{run_dir} has no MLflow run yet; make it with: tdformer runs sync {run_dir}")
    return uri, run_id


def log_files(uri: str, run_id: str, files: Sequence[Path]) -> None:
    """Send files as artifacts. Raises UserError if MLflow does not take them; they stay where they are."""
    try:
        client = open_client(uri)
        for path in files:
            client.log_artifact(run_id, str(path), ARTIFACTS)
    except Exception as error:  # MLflow passes on whatever its database or server raises
        raise UserError(
            f"MLflow at {uri} did not take the analysis ({explain(error, uri)}); it is in {files[0].parent}, and the same command sends it."
        ) from None
