"""A newcomer's way through the guides: the commands are taken from their text and given to a shell, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.guides import commands, guides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # thirteen commands, on a machine that may be busy

STEPS = (
    ("tdformer data prepare mnist", "train on it: tdformer train"),
    ("tdformer data verify data/mnist", "no damage found"),
    ("tdformer describe configs/demo.yaml", "327,142"),
    ("tdformer train configs/demo.yaml training.epochs", "validation top-1"),
    ("tdformer train runs/demo-001", "resumed at step 50 of 50"),
    ("tdformer evaluate runs/demo-001", "1,000"),
    ("tdformer checkpoint inspect runs/demo-001", "step-00000050"),
    ("tdformer checkpoint export runs/demo-001", "the network of step 50"),
    ("python -c 'import tdformer.models", "TDFormer("),
    ("tdformer runs list", "finished"),
    ("tdformer runs show runs/demo-001", "tdformer evaluate runs/demo-001"),
    ("tdformer runs compare runs/demo-", "report.html"),
    ("tdformer runs sync runs", "nothing was lacking"),
)
"""How each command begins in the guides, and what it then prints."""


def printed(beginning: str) -> str:
    """The first command of the guides that begins so."""
    for guide in guides():
        for command in commands(guide.read_text()):
            if command.line.startswith(beginning):
                return command.line
    raise AssertionError(f"no guide has a command that begins with: {beginning}")


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in a folder that holds configs/ alone, where `tdformer` and `python` are those of this test."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "bin").mkdir()
    for name, command in (("python", sys.executable), ("tdformer", f"{sys.executable} -m launch")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def test_the_way_of_a_newcomer(shell: dict[str, str], tmp_path: Path) -> None:
    """One epoch in place of the number that the guide gives; everything else as it is printed."""
    for beginning, expected in STEPS:
        line = re.sub(r"training\.epochs=\d+", "training.epochs=1", printed(beginning))
        result = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=shell, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        assert expected in result.stdout, f"{line}\n{result.stdout}\n{result.stderr}"
    assert (tmp_path / "report.html").read_text().startswith("<!")
    assert {entry.name for entry in (tmp_path / "weights" / "demo").iterdir()} == {"model.safetensors", "config.json"}
    told = (REPOSITORY / "README.md").read_text()
    assert [entry.name for entry in (tmp_path / "runs" / "demo-001").iterdir() if entry.name not in told] == []
