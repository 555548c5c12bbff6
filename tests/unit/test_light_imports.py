"""Some commands start quickly and run on a login node: they load no heavy package. Which folder may import which, lint-imports checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.unit.generated_runs import write_run

HEAVY = ("torch", "deepspeed", "mlflow", "timm", "spikingjelly", "webdataset", "ffcv", "numba", "matplotlib")


def loaded_by(program: str) -> str:
    """Run a program in a new interpreter. Return its output, with the heavy packages that it loaded in the last line."""
    program += f"\nimport sys\nprint('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def loaded_by_command(*arguments: str) -> str:
    """Run a command likewise. It must succeed."""
    return loaded_by(
        f"from launch.cli import app\ntry:\n    app({list(arguments)!r})\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["data", "prepare", "--help"]])
def test_help_loads_no_heavy_package(arguments: list[str]) -> None:
    shown = loaded_by_command(*arguments)
    assert "Usage" in shown
    assert shown.endswith("LOADED []\n")


def test_submitting_loads_no_heavy_package() -> None:
    assert loaded_by_command("submit", "configs/demo.yaml", "--gpus-per-node", "0", "--dry-run").endswith("LOADED []\n")


def test_listing_runs_loads_no_heavy_package(tmp_path: Path) -> None:
    """test_runs says the same of comparing and showing them."""
    shown = loaded_by_command("runs", "list", str(write_run(tmp_path / "run-001")))
    assert "run-001" in shown
    assert shown.endswith("LOADED []\n")


def test_a_configuration_is_read_without_a_heavy_package() -> None:
    shown = loaded_by("from pathlib import Path\nfrom tdformer.config.yaml_io import load_config\nload_config(Path('configs/demo.yaml'))")
    assert shown == "LOADED []\n"


def test_a_run_directory_is_read_without_a_heavy_package() -> None:
    """A watcher or a script on a login node may import the folder."""
    modules = sorted(path.stem for path in (REPOSITORY / "tdformer" / "rundir").glob("[a-z]*.py"))
    assert modules
    assert loaded_by("\n".join(f"import tdformer.rundir.{module}" for module in modules)) == "LOADED []\n"


def test_a_rank_imports_deepspeed_without_mlflow_and_without_torchs_compiler() -> None:
    """A new DeepSpeed may import them at another place: then each rank reads two thousand files more. Afterwards both can be imported."""
    shown = loaded_by(
        """
import sys
from tdformer.training.deepspeed_insides import import_deepspeed

deepspeed = import_deepspeed()
import deepspeed.runtime.zero.muon.muon_optimizer

print([name for name in ("mlflow", "torch._inductor.compile_fx") if name in sys.modules])
import mlflow
from deepspeed.runtime import compiler

assert mlflow.MlflowClient and compiler.compile() is deepspeed.runtime.engine.torch.compile
"""
    )
    assert "[]" in shown.splitlines()
