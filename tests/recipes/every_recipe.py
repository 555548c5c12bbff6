"""Each recipe that is shipped, trained at a reduced size, and planned at its full one. `make test-recipes` runs it, in some minutes.

Pytest does not collect this file by itself; test_some_recipes.py is what every run of the suite tries.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from tdformer.config import shipped
from tdformer.config.yaml_io import load_config
from tdformer.estimate.plan import plan
from tdformer.estimate.traffic import Machines
from tests.recipes.reduced import NAMES, data_of, dry_run, prepared


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_resumes_and_evaluates(
    name: str, data_sets: dict[str, Path], empty_mlflow: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = data_of(name)
    if data not in data_sets:
        with pytest.MonkeyPatch.context() as patch:
            data_sets[data] = prepared(data, tmp_path_factory.mktemp(data), patch)
    dry_run(name, data_sets[data], Path(shutil.copy(empty_mlflow, tmp_path / "mlflow.db")), tmp_path / "runs")


@pytest.mark.parametrize("gpus", [8, 64])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_planned(name: str, gpus: int) -> None:
    """A plan says what the recipe needs, or which micro-batch would fit that number of GPUs."""
    config, machines = load_config(shipped.path_of(name)), Machines(gpus, 8, 100.0, 1600.0)
    if config.training.global_batch % (config.training.micro_batch * gpus):
        with pytest.raises(UserError, match=r"training\.micro_batch=|would fit"):
            plan(config, machines, 100.0)
    else:
        assert plan(config, machines, 100.0).total_memory_bytes > 0
