"""The house: which way imports point, and what starts quickly."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

HEAVY = ("torch", "deepspeed", "mlflow", "timm", "spikingjelly", "webdataset")


def test_imports_point_one_way() -> None:
    """launch -> tdformer -> data_pipelines, lazy imports included; the contract stands in pyproject.toml."""
    result = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"], cwd=REPOSITORY, check=False
    )
    assert result.returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["data", "prepare", "--help"]])
def test_help_needs_no_heavy_package(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom launch.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    code = end.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\nprint('LOADED', loaded, code)"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "Usage" in shown
    assert "LOADED [] 0" in shown


def test_a_configuration_is_read_without_torch() -> None:
    """As on a login node."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom tdformer.config.yaml_io import load_config\n"
        "load_config(Path('configs/demo.yaml'))\nprint([name for name in sys.modules if name in " + repr(HEAVY) + "])"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
