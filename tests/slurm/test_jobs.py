"""Tests runs as jobs of a real Slurm on two nodes. Whatever ends a job, the run continues and ends with the same bits.

A job has both nodes where its processes must agree or find each other. Others have one, whose process starts in half the time.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.runs import difference
from tests.slurm.cluster import NODES, Cluster
from tests.slurm.jobs import LAST_STEP, Jobs, saved_step, wait_for_step

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def undisturbed(jobs: Jobs) -> Path:
    """The run directory of a job that nothing disturbs."""
    submitted = jobs.submit(jobs.config("undisturbed"))
    jobs.cluster.wait(submitted["job"], "COMPLETED")
    return Path(submitted["runs"][0])


def log_of(run: Path) -> str:
    return "".join(path.read_text() for path in sorted((run / "slurm").glob("*.out")))


def starts(run: Path) -> list[tuple[int, str | None]]:
    lines = (run / "slurm" / "attempts.jsonl").read_text().splitlines()
    return [(attempt["restart"], attempt["start"]) for attempt in map(json.loads, lines)]


def test_a_run_on_two_nodes(undisturbed: Path) -> None:
    log = log_of(undisturbed)
    assert f"on {','.join(NODES)}" in log
    assert "4 = 1 x 2 ranks x 2 accumulation" in log
    assert "is finished" in log
    assert (undisturbed / "code" / "launch" / "cli.py").exists()
    assert starts(undisturbed) == [(0, None)]


@pytest.mark.timeout(1800)
def test_a_job_that_is_hit_again_and_again_comes_back_to_the_same_bits(
    jobs: Jobs, cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    """A job gets a warning signal, loses a process and twice a node. It stays one run in MLflow. (Preemption requeues another one.)"""
    (tmp_path / "cluster.yaml").write_text("environment: {SLURM_WAIT: '4'}\n")
    submitted = jobs.submit(jobs.config("hit"), "--cluster", tmp_path / "cluster.yaml")
    job, run = submitted["job"], Path(submitted["runs"][0])

    wait_for_step(run, 3)
    assert cluster.run("scancel", "--signal=USR1", job).returncode == 0
    cluster.wait_for_restart(job, 1)
    assert "stopped by SIGUSR1" in log_of(run)

    wait_for_step(run, saved_step(run) + 3)
    cluster.tasks(NODES[1])[-1].kill()
    cluster.wait_for_restart(job, 2)

    wait_for_step(run, saved_step(run) + 3)
    cluster.kill_node(NODES[1])  # The node is back before Slurm notices. srun would wait for it forever.
    cluster.start_node(NODES[1])
    cluster.wait_for_restart(job, 3)

    wait_for_step(run, saved_step(run) + 3)
    cluster.kill_node(NODES[1])  # The node stays down.
    cluster.wait_until(lambda: cluster.states()[NODES[1]].startswith("down"))
    cluster.start_node(NODES[1])
    cluster.wait_for_restart(job, 4)

    cluster.wait(job, "COMPLETED")
    assert difference(run, undisturbed, LAST_STEP) == ""
    assert [restart for restart, _ in starts(run)] == [0, 1, 2, 3, 4]
    assert "killed" not in log_of(run).split("restart 1, on")[0]  # The first job ended by itself, with its state saved.


def test_a_job_whose_time_is_over_saves_and_comes_back(jobs: Jobs, cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("warning_s: 60\nenvironment: {OMP_NUM_THREADS: '1'}\n")
    config = jobs.config("short", preemption={"minutes_before_end": None})
    slow = ("checkpoint.background=false", "training.epochs=400")  # The job must still run when its time is over.
    submitted = jobs.submit(
        config, "--time", "2", "--cluster", tmp_path / "cluster.yaml", *slow, nodes=1
    )  # A busy machine starts it within one.
    job, run = submitted["job"], Path(submitted["runs"][0])
    cluster.wait_for_restart(job, 1)
    log = log_of(run)
    assert "stopped by SIGUSR1" in log
    assert "put back into the queue" in log
    assert "DUE TO TIME LIMIT" not in log
    assert cluster.run("scancel", job).returncode == 0
    cluster.wait(job, "CANCELLED")


def test_a_cancelled_job_saves_stays_away_and_can_be_gone_on_with(jobs: Jobs, cluster: Cluster, undisturbed: Path) -> None:
    submitted = jobs.submit(jobs.config("cancelled"), nodes=1)
    run = Path(submitted["runs"][0])
    wait_for_step(run, 4)

    twice = jobs.tdformer("submit", run, "--nodes", 2, "--gpus-per-node", 0)
    assert twice.returncode == 2
    assert f"error: job {submitted['job']} (RUNNING) has {run}" in twice.stderr

    assert cluster.run("scancel", submitted["job"]).returncode == 0
    cluster.wait(submitted["job"], "CANCELLED")
    cluster.wait_until(lambda: not cluster.tasks(NODES[0]))
    assert "stopped by SIGTERM" in log_of(run)
    again = jobs.submit(run)
    assert again["job"] != submitted["job"]
    cluster.wait(again["job"], "COMPLETED")
    assert difference(run, undisturbed, LAST_STEP) == ""


def test_a_job_that_makes_room_for_a_more_urgent_one_comes_back(jobs: Jobs, cluster: Cluster, undisturbed: Path) -> None:
    submitted = jobs.submit(jobs.config("preempted"), nodes=1)
    job, run = submitted["job"], Path(submitted["runs"][0])
    wait_for_step(run, 3)
    urgent = cluster.run("sbatch", "--parsable", "-p", "urgent", "-N2", "-n4", "--output=/dev/null", "--wrap", "sleep 1").stdout.strip()
    cluster.wait(urgent, "COMPLETED")
    cluster.wait(job, "COMPLETED")
    assert "killed" not in log_of(run)  # The job ended by itself, with its state saved.
    assert starts(run)[1][0] == 1
    assert difference(run, undisturbed, LAST_STEP) == ""


def test_a_crash_loop_ends_by_itself_and_says_why(jobs: Jobs, cluster: Cluster, tmp_path: Path) -> None:
    """Every start exceeds its limit of CPU seconds before the first step, and the kernel kills it."""
    (tmp_path / "cluster.yaml").write_text("max_fruitless: 2\nsetup: ['ulimit -t 4']\n")
    submitted = jobs.submit(jobs.config("loop"), "--cluster", tmp_path / "cluster.yaml", nodes=1)
    run = Path(submitted["runs"][0])
    cluster.wait(submitted["job"], "FAILED")
    assert starts(run) == [(0, None), (1, None)]
    assert "was started 2 times from the beginning and never came to another checkpoint" in log_of(run)


def test_what_is_to_be_mended_is_not_tried_again(jobs: Jobs, cluster: Cluster) -> None:
    config = jobs.config("mend")
    data = shutil.copytree(jobs.data, config.parent / "data")
    submitted = jobs.submit(config, f"data.train={data}/train", f"data.val={data}/nowhere")
    cluster.wait(submitted["job"], "FAILED")
    log = log_of(Path(submitted["runs"][0]))
    assert sum(line.startswith("error:") for line in log.splitlines()) == 1
    assert "nowhere" in log
    assert "is not put back into the queue: there is something to mend first" in log
    assert "Traceback" not in log


def test_a_sweep_is_an_array_of_runs(jobs: Jobs, cluster: Cluster) -> None:
    sweeps = ("--sweep", "seed=[1, 2]", "--sweep", "optimizer.eps=[1e-8]")
    submitted = jobs.submit(jobs.config("sweep"), "training.epochs=1", *sweeps, nodes=1)
    for index, run in enumerate(map(Path, submitted["runs"])):
        cluster.wait(f"{submitted['job']}_{index}", "COMPLETED")
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert (config["seed"], config["optimizer"]["eps"]) == (index + 1, 1e-8)
        assert json.loads((run / "slurm" / "job.json").read_text())["job"] == f"{submitted['job']}_{index}"
        assert saved_step(run) == 6
    first, second = ((Path(run) / "checkpoints" / "step-00000006" / "model.safetensors").read_bytes() for run in submitted["runs"])
    assert first != second


def test_a_study_is_a_job_for_each_run(jobs: Jobs, cluster: Cluster, tmp_path: Path) -> None:
    base, study = jobs.config("study"), tmp_path / "study.yaml"
    settings = {"plain": {"model.feedback": None}, "topdown": {}}
    described = {"name": "small", "base": str(base), "output": str(tmp_path), "settings": settings, "seeds": [1]}
    study.write_text(yaml.safe_dump({**described, "shared": {"training.epochs": 1}}))
    command = ("study", study, "--slurm", "--gpus-per-node", 0)
    submitted = dict(line.split(": job ") for line in jobs.tdformer(*command).stdout.splitlines())
    assert [Path(run).name for run in submitted] == ["plain-seed-1", "topdown-seed-1"]
    for run, number in submitted.items():
        assert f"{run} has job {number}" in jobs.tdformer(*command).stdout or saved_step(Path(run)) == 6
        cluster.wait(number, "COMPLETED")
    assert jobs.tdformer(*command).stdout == "", "nothing is left to submit"
    assert jobs.tdformer("study", study, "--report").stdout.count("hours each") == 1


def test_a_recipe_is_a_chain_of_jobs_that_wait_for_each_other(jobs: Jobs, cluster: Cluster) -> None:
    """The first job is requeued in between, which does not let the next one begin. The second fails, and Slurm cancels the third."""
    first = jobs.config("chain")
    above = "base: run.yaml\nafter: {after}.yaml\nname: {name}\ntraining: {{epochs: 1}}\ndata: {{image_size: {size}, val: {val}}}\n"
    val = jobs.data / "val"
    second, last = first.parent / "second.yaml", first.parent / "third.yaml"
    second.write_text(above.format(after="run", name="second", size=48, val=val / "nowhere"))
    last.write_text(above.format(after="second", name="third", size=64, val=val))
    folder = first.parent / "third-recipe"
    command = ("recipe", last, "--submit", "--gpus-per-node", 0, "--nodes", 2)

    done = jobs.tdformer(*command)
    assert done.returncode == 0, done.stderr
    numbers = [line.split(": job ")[1].split(",")[0] for line in done.stdout.splitlines()[:3]]
    assert f"second: job {numbers[1]}, after job {numbers[0]}" in done.stdout
    assert [cluster.job(number)["Reason"] for number in numbers[1:]] == ["Dependency"] * 2
    wait_for_step(folder / "chain", 3)
    assert cluster.run("scancel", "--signal=USR1", numbers[0]).returncode == 0
    cluster.wait_for_restart(numbers[0], 1)
    assert cluster.job(numbers[1])["JobState"] == "PENDING"
    assert f"chain: has job {numbers[0]}" in jobs.tdformer(*command).stdout, "all three are in the queue"
    for number, state in zip(numbers, ("COMPLETED", "FAILED", "CANCELLED"), strict=True):
        cluster.wait(number, state)

    second.write_text(above.format(after="run", name="second", size=48, val=val))
    again = jobs.tdformer(*command, "--json")
    submitted = [line.split(": job ") for line in again.stderr.splitlines() if ": job " in line]
    assert [stage for stage, _ in submitted] == ["second", "third"]
    cluster.wait(submitted[1][1].partition(",")[0], "COMPLETED")
    assert f"started from the weights in {folder}/chain/checkpoints/best" in log_of(folder / "second")
    shown = jobs.tdformer("runs", "show", folder, "--json")
    assert [(row["stage"], row["state"]) for row in json.loads(shown.stdout)["stages"]] == [
        ("chain", "finished"),
        ("second", "finished"),
        ("third", "finished"),
    ]


def test_torchrun_on_two_nodes(jobs: Jobs, cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("launcher: torchrun\nenvironment: {OMP_NUM_THREADS: '1'}\n")
    submitted = jobs.submit(jobs.config("torchrun"), "--cluster", tmp_path / "cluster.yaml")
    job, run = submitted["job"], Path(submitted["runs"][0])
    wait_for_step(run, 3)
    assert cluster.run("scancel", "--signal=USR1", job).returncode == 0
    cluster.wait_for_restart(job, 1)
    cluster.wait(job, "COMPLETED")
    assert "stopped by SIGUSR1" in log_of(run)
    assert difference(run, undisturbed, LAST_STEP) == ""


def test_the_script_for_those_who_want_no_tool(jobs: Jobs, cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    config = jobs.config("template")
    run = config.parent / "run"
    (tmp_path / ".venv").symlink_to(sys.prefix)
    options = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--time=10", f"--chdir={tmp_path}", f"--output={tmp_path}/%j.out")
    done = cluster.run("sbatch", "--parsable", *options, f"{REPOSITORY}/launch/train.sbatch", str(config), str(run))
    assert done.returncode == 0, done.stderr
    wait_for_step(run, 3)
    assert cluster.run("scancel", "--signal=USR1", done.stdout.strip()).returncode == 0
    cluster.wait(done.stdout.strip(), "COMPLETED")
    assert starts(run)[1][0] == 1
    assert difference(run, undisturbed, LAST_STEP) == ""
