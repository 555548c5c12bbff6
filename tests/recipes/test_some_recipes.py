"""A few shipped recipes at a reduced size, one for each kind of data. every_recipe.py has all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.recipes.reduced import data_of, dry_run, prepared

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["imagenet/sdt8_768_224", "cifar100/tdformer_hst4_384", "dvs128/sdt2_256"])
def test_a_recipe_trains_resumes_and_evaluates(name: str, empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = prepared(data_of(name), tmp_path / "data", monkeypatch)
    dry_run(name, data, Path(shutil.copy(empty_mlflow, tmp_path / "mlflow.db")), tmp_path / "runs")
