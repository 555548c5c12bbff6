"""What lies in the current folder is imported by no process of ours, whatever its name: not for our packages, and not for Python's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from launch.slurm.snapshot import snapshot
from tests.conftest import REPOSITORY, write_config
from tests.distributed.starter import installed_command

pytestmark = pytest.mark.slow

NAMES = (
    *("launch", "tdformer", "data_pipelines", "tests", "random", "typing", "signal", "socket", "struct", "tempfile", "multiprocessing"),
    *("numpy", "torch", "mlflow", "deepspeed", "psutil"),
)
IMPORTED = "import os\nwith open(os.environ['IMPORTED'], 'a') as file:\n    file.write(__name__ + '\\n')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which every name stands for something else. Names with an e are folders."""
    folder = tmp_path / "work"
    for name in NAMES:
        path = folder / name / "__init__.py" if "e" in name else folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(IMPORTED)
    return folder


def run(command: Sequence[object], folder: Path, **environment: str) -> CompletedProcess[str]:
    """Run a command in a folder, where it must import nothing."""
    note = folder.parent / "imported"
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    variables |= {"IMPORTED": str(note), "OMP_NUM_THREADS": "1", **environment}
    ended = subprocess.run([*map(str, command)], cwd=folder, env=variables, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert not note.exists(), note.read_text()
    return ended


@pytest.fixture
def tdformer(tmp_path: Path) -> Path:
    """The command as it is installed: a script in another folder."""
    return installed_command(tmp_path)


def world_size(run: Path) -> int:
    return json.loads((run / "sessions" / "0001.json").read_text())["world_size"]


def test_a_run_of_several_processes_with_loaders(folder: Path, tdformer: Path, run_config: dict, tmp_path: Path) -> None:
    run_config["training"]["epochs"] = 1
    run_config["data"]["workers"] = 1
    config = write_config(run_config, tmp_path)
    run([tdformer, "train", config, "--run-dir", tmp_path / "run", "--processes", 2], folder, PYTHONPATH=str(REPOSITORY))
    assert world_size(tmp_path / "run") == 2


def test_processes_that_write_a_data_set(folder: Path, tdformer: Path, tmp_path: Path) -> None:
    run([tdformer, "data", "prepare", "mnist", tmp_path / "out", "--only", "val", "--processes", 2], folder, PYTHONPATH=str(REPOSITORY))
    assert (tmp_path / "out" / "val" / "manifest.json").exists()


def test_an_empty_part_of_pythonpath(folder: Path, tdformer: Path, run_config: dict, tmp_path: Path) -> None:
    """PYTHONPATH=$PYTHONPATH:FOLDER has one. Python itself then looks into the current folder until our first line is run."""
    for name in ("launch", "tdformer", "data_pipelines", "typing", "signal", "tempfile"):
        path = folder / name if (folder / name).is_dir() else folder / f"{name}.py"
        path.rename(path.with_name(f"not_{path.name}"))
    run_config["training"]["epochs"] = 1
    run_config["data"]["workers"] = 1
    config = write_config(run_config, tmp_path)
    run([tdformer, "train", config, "--run-dir", tmp_path / "run"], folder, PYTHONPATH=f":{REPOSITORY}")
    assert world_size(tmp_path / "run") == 1


def test_as_a_module(folder: Path, run_config: dict, tmp_path: Path) -> None:
    """Python looks into the current folder first for `-m launch`. A launch.py there is the user's wish, and all else is not."""
    (folder / "launch.py").unlink()
    run_config["training"]["epochs"] = 1
    config = write_config(run_config, tmp_path)
    command = [sys.executable, "-m", "launch", "train", config, "--run-dir", tmp_path / "run", "--processes", 2]
    run(command, folder, PYTHONPATH=str(REPOSITORY))
    assert world_size(tmp_path / "run") == 2


def test_packages_that_are_in_the_current_folder_are_those_that_all_processes_run(run_config: dict, tmp_path: Path) -> None:
    """A checkout that is not installed, or beside another one that is."""
    checkout = tmp_path / "checkout"
    snapshot(checkout)
    for module in ("training/run.py", "../data_pipelines/loading/loader_workers.py"):
        with (checkout / "tdformer" / module).open("a") as file:
            file.write(f"\nprint('the copy of {module}', flush=True)\n")
    run_config["training"]["epochs"] = 1
    run_config["data"]["workers"] = 1
    config = write_config(run_config, tmp_path)
    ended = run([sys.executable, "-m", "launch", "train", config, "--run-dir", tmp_path / "run", "--processes", 2], checkout)
    assert ended.stdout.count("the copy of training/run.py") == 2
    assert ended.stdout.count("the copy of ../data_pipelines/loading/loader_workers.py") >= 2
