"""Sends the trained network to MLflow: as artifacts of the run, and to the model registry with its metrics."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdformer.config import RunConfig
from tdformer.rundir.run_dir import RunDir

if TYPE_CHECKING:
    from tdformer.checkpoint.format import Checkpoint

FOLDER = "model"
"""Folder of the run's artifacts with config.json and model.safetensors, as `tdformer checkpoint export` writes them."""
CHECKPOINT_TAG = "tdformer.checkpoint"


def send(client: Any, run_id: str, run_dir: RunDir, config: RunConfig) -> None:
    """Send and register the network that tracking.log_model names, unless that was done before."""
    tracking = config.tracking
    if tracking.log_model == "none":
        return
    from tdformer.checkpoint.store import find

    checkpoint = find(run_dir.path, tracking.log_model)
    if client.get_run(run_id).data.tags.get(CHECKPOINT_TAG) != checkpoint.name:
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=run_dir.path) as folder:
            from tdformer.checkpoint.export import export

            exported = Path(folder) / FOLDER
            export(checkpoint, exported, averaged=config.training.ema_decay is not None)
            client.log_artifacts(run_id, str(exported), FOLDER)
        client.set_tag(run_id, CHECKPOINT_TAG, checkpoint.name)  # comes last, so that an upload that was cut off is done again
    if tracking.register_as:
        _register(client, run_id, tracking.register_as, checkpoint)


def _register(client: Any, run_id: str, name: str, checkpoint: Checkpoint) -> None:
    """Register the network as a version of a model, with this run's validation metrics as tags."""
    from mlflow.exceptions import MlflowException

    from tdformer.checkpoint.format import check

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if any(version.name == name for version in client.search_model_versions(f"run_id = '{run_id}'")):
        return
    train_state = check(checkpoint)
    tags = {f"val/{metric}": f"{value:.6g}" for metric, value in train_state.metrics.items()} | {CHECKPOINT_TAG: checkpoint.name}
    source = f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}"
    client.create_model_version(name, source, run_id=run_id, tags=tags, await_creation_for=0)
