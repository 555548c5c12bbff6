"""Tests that a wrong submission fails at once, with Slurm's own message if Slurm refuses it, and leaves no files behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.jobs import Jobs

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

REFUSALS = {
    "partition": (["--partition", "nowhere"], "invalid partition specified: nowhere"),
    "gpus": (["--gpus-per-node", 4], "Requested node configuration is not available"),
    "nodes": (["--nodes", 4], "Node count specification invalid"),
    "time": (["--time", "2-00:00:00"], "Requested time limit is invalid"),
    "time's form": (["--time", "soon"], "time: must be a time as Slurm writes it"),
    "global batch": (["--gpus-per-node", 0, "--processes-per-node", 3], "global_batch must be a multiple of training.micro_batch x ranks"),
    "signal": (["preemption.signals=[SIGTERM]"], "SIGUSR1, which is not one of preemption.signals"),
    "sweep": (["--sweep", "seed=1"], "--sweep 'seed=1' is not of the form section.key=[value, value, …]"),
    "swept value": (["--sweep", "training.zero_stage=[1, 7]"], "training.zero_stage: got 7"),
    "sweep of one run": (["--sweep", "seed=[1, 2]", "--run-dir", "one"], "one is one run, and --sweep starts 2 new ones"),
    "cluster file": (["--cluster", "missing.yaml"], "missing.yaml cannot be read"),
    "override": (["model.depth=3"], "model.depth: unknown key"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(jobs: Jobs, tmp_path: Path, name: str) -> None:
    options, sentence = REFUSALS[name]
    config = jobs.config(f"refused {name}".replace(" ", "-").replace("'", ""))
    before = sorted(config.parent.iterdir())
    done = jobs.tdformer("submit", config, "--gpus-per-node", 0, *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(config.parent.iterdir()) == before


def test_a_host_without_slurm(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = jobs.config("nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tests.slurm.cluster.DAEMONS", str(tmp_path))
    refused = jobs.tdformer("submit", config, "--gpus-per-node", 0)
    assert refused.returncode == 2
    assert "there is no sbatch on this host" in refused.stderr
    assert jobs.tdformer("submit", config, "--gpus-per-node", 0, "--dry-run").returncode == 0
