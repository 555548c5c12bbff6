"""Tests the scripts of `tdformer submit`: bash accepts them, all settings of the cluster are there, and no value is executed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data_pipelines.errors import UnavailableError, UserError
from data_pipelines.storage.patience import Patience
from launch.slurm import attempts, requeue, scheduler
from launch.slurm.cluster_config import ClusterConfig, load_cluster, seconds_of, with_options
from launch.slurm.requeue import begin
from launch.slurm.script import Job, render
from launch.slurm.snapshot import snapshot
from tdformer.config.yaml_io import ConfigError
from tdformer.rundir.run_dir import RunDir
from tests.conftest import REPOSITORY, tdformer, write_config


def job(folder: Path, runs: int = 1, nodes: int = 2, gpus: int = 8) -> Job:
    paths = [folder / f"a run's {number}" for number in range(runs)]
    return Job("x-001", paths, paths[0] / "slurm" / "train.sbatch", folder, sys.executable, nodes, gpus, gpus)


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def variables(script: str, folder: Path, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Run the settings of a script in bash, and return its arrays and variables at the beginning of the job."""
    settings = script.partition("# --- the job")[0]
    shown = "\n".join(f'printf "%s\\0" "${{{name}[@]}}" > {folder}/{name}' for name in names)
    environment = {
        "PATH": "/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n",
        "SLURM_CPUS_PER_TASK": "5",
        "SLURM_ARRAY_TASK_ID": "1",
    }
    functions = "module() { echo module $@; }; scontrol() { echo first; }"
    subprocess.run(["bash", "-c", f"set -eu; {functions}\n{settings}\n{shown}"], check=True, env=environment, capture_output=True)
    return {name: (folder / name).read_text().split("\0")[:-1] for name in names}


CLUSTERS = {
    "plain": ClusterConfig(),
    "all": load_cluster(REPOSITORY / "configs" / "clusters" / "example.yaml"),
    "torchrun": ClusterConfig(launcher="torchrun", cpus_per_process=4),
    "pyxis": ClusterConfig.model_validate({"container": {"runtime": "pyxis", "image": "docker://a b", "mounts": ["/data:/data"]}}),
    "apptainer": ClusterConfig.model_validate({"container": {"runtime": "apptainer", "image": "x y.sif"}}),
}


@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("runs", [1, 3])
def test_bash_accepts_the_script(tmp_path: Path, name: str, runs: int) -> None:
    script = render(job(tmp_path, runs), CLUSTERS[name])
    (tmp_path / "script").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "script"], check=True)
    found = variables(script, tmp_path, ("RUN", "SRUN", "RANK", "PYTHONPATH"))
    assert found["RUN"] == [str(tmp_path / f"a run's {int(runs > 1)}")]
    assert found["PYTHONPATH"] == [f"{found['RUN'][0]}/code"]


def test_the_snapshot_comes_before_all_other_code(tmp_path: Path) -> None:
    """Modules and settings may put folders on Python's path, too."""
    for cluster in (ClusterConfig(setup=("export PYTHONPATH=/theirs",)), ClusterConfig(environment={"PYTHONPATH": "/theirs"})):
        found = variables(render(job(tmp_path), cluster), tmp_path, ("RUN", "PYTHONPATH", "PYTHONSAFEPATH"))
        assert found["PYTHONPATH"] == [f"{found['RUN'][0]}/code:/theirs"]
        assert found["PYTHONSAFEPATH"] == ["1"]


def test_ranks_get_the_environment_of_the_script(tmp_path: Path) -> None:
    """srun takes what sbatch was told about the environment for itself: with --export=NONE ranks would run other code."""
    for script in (render(job(tmp_path), CLUSTERS["plain"]), (REPOSITORY / "launch" / "train.sbatch").read_text()):
        before, _, _ = script.partition('"${SRUN[@]}"')
        assert "\nexport SLURM_EXPORT_ENV=ALL\n" in before


def test_options_of_a_job(tmp_path: Path) -> None:
    given = options(render(job(tmp_path), CLUSTERS["all"]))
    for option in (
        *("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=12", "--mem=0", "--partition=gpu", "--account=vision"),
        *("--time=24:00:00", "--signal=SIGUSR1@300", "--requeue", "--open-mode=append", "--constraint=h100", "--exclusive"),
    ):
        assert option in given
    assert "--array=0-2" in options(render(job(tmp_path, runs=3), CLUSTERS["all"]))
    assert not any(option.startswith("--gpus") for option in options(render(job(tmp_path, gpus=0), CLUSTERS["plain"])))


def test_what_starts_a_rank(tmp_path: Path) -> None:
    found = {name: variables(render(job(tmp_path), cluster), tmp_path, ("SRUN", "RANK")) for name, cluster in CLUSTERS.items()}
    assert found["plain"] == {"SRUN": ["srun"], "RANK": [sys.executable, "-m", "launch"]}
    assert found["all"]["SRUN"] == ["srun", "--cpus-per-task=5"]
    torchrun = found["torchrun"]["RANK"]
    assert torchrun[:5] == [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=8"]
    assert "--rdzv-endpoint=first:20007" in torchrun
    assert "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGUSR2" in torchrun
    assert "--container-image=docker://a b" in found["pyxis"]["SRUN"]
    assert any(option.startswith("--container-mounts=") and option.endswith(",/data:/data") for option in found["pyxis"]["SRUN"])
    assert found["pyxis"]["RANK"] == ["python", "-m", "launch"]
    assert found["apptainer"]["RANK"][:3] == ["apptainer", "exec", "--nv"]
    assert found["apptainer"]["RANK"][-4:] == ["x y.sif", "python", "-m", "launch"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"partition": "a b"},
        {"sbatch": ["--x\nrm -rf /"]},
        {"environment": {"A": "1\nrm"}},
        {"environment": {"A;B": "1"}},
        {"time": "tomorrow"},
        {"modules": [""]},
        {"colour": 1},
        {"container": {"runtime": "docker", "image": "x"}},
    ],
)
def test_a_cluster_file_that_is_wrong_is_refused_by_key(tmp_path: Path, wrong: dict) -> None:
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(wrong))
    with pytest.raises(UserError, match=f"cluster.yaml cannot be used:\n  {next(iter(wrong))}"):
        load_cluster(tmp_path / "cluster.yaml")


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        *(("1", 60), ("90", 5400), ("90:30", 5430), ("24:00:00", 86400), ("100:00:00", 360000), ("1-0", 86400), ("1-2:30", 95400)),
        *(("1-02:03:04", 93784), ("0:30", 30), ("0", 0), ("00:00:00", 0), ("0-0", 0)),
        *((text, None) for text in ("1:99:99", "1:60:00", "0:99", "1-24", "1-0:60", "1:2:3:4", "", "1-", "x", "-1", "1:", "\u0661")),
    ],
)
def test_times_of_slurm(given: str, seconds: int | None) -> None:
    assert seconds_of(given) == seconds
    if not seconds:
        with pytest.raises(UserError, match=r"time: must be (longer than no time|a time as Slurm writes it)"):
            with_options(ClusterConfig(), {"time": given})


@pytest.mark.slow
def test_a_job_that_would_be_stopped_at_once_is_refused(run_config: dict, tmp_path: Path) -> None:
    path = write_config(run_config, tmp_path)
    refused = tdformer("submit", path, "--gpus-per-node", 0, "--time", 5, "--dry-run")
    assert refused.returncode == 2
    assert "the job has time 5, and is told to stop 300 s before its end, which is at once" in refused.stderr
    assert tdformer("submit", path, "--gpus-per-node", 0, "--time", "5:01", "--dry-run").returncode == 0


SWEEPS = {
    "a value twice": (["seed=[1, 1]"], [], "--sweep asks for the same run twice (seed=1 and seed=1)"),
    "a value in two forms": (
        ["optimizer.base_lr=[1, 1.0]"],
        [],
        "asks for the same run twice (optimizer.base_lr=1 and optimizer.base_lr=1.0)",
    ),
    "a key twice": (["seed=[1]", "seed=[2]"], [], "--sweep 'seed=[2]': seed is given twice"),
    "a key that is given anyway": (["seed=[1, 2]"], ["seed=3"], "--sweep 'seed=[1, 2]': seed is given twice"),
    "the folder": (["output=[a, b]"], [], "the runs of a sweep lie in one folder"),
    "no sweep": ([], ["--at-once", 2], "--at-once is for the jobs of a --sweep"),
    "an override twice": ([], ["seed=1", "seed=2"], "override 'seed=2': seed is given twice"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_that_is_not_meant_so_is_refused(run_config: dict, tmp_path: Path, name: str) -> None:
    sweeps, others, sentence = SWEEPS[name]
    options = [option for sweep in sweeps for option in ("--sweep", sweep)]
    refused = tdformer("submit", write_config(run_config, tmp_path), "--gpus-per-node", 0, "--dry-run", *options, *others)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: ")
    assert sentence in refused.stderr


@pytest.mark.slow
def test_a_sweep_may_be_put_elsewhere(run_config: dict, tmp_path: Path) -> None:
    path = write_config(run_config, tmp_path)
    shown = tdformer(
        "submit", path, f"output={tmp_path}/other", "--gpus-per-node", 0, "--dry-run", "--sweep", "seed=[1, 2]", "--at-once", 1
    )
    assert shown.returncode == 0, shown.stderr
    assert f"RUNS=({tmp_path}/other/tiny-sweep-001/tiny-001 " in shown.stdout
    assert "#SBATCH --array=0-1%1\n" in shown.stdout


def test_a_value_is_never_run(tmp_path: Path) -> None:
    cluster = ClusterConfig(environment={"A": "$(touch pwned); `touch pwned`"}, modules=("$(touch pwned)",))
    found = variables(render(job(tmp_path), cluster), tmp_path, ("A",))
    assert found["A"] == ["$(touch pwned); `touch pwned`"]
    assert not Path("pwned").exists()


def test_a_dry_run_makes_nothing_and_needs_neither_torch_nor_slurm(run_config: dict, tmp_path: Path) -> None:
    path = write_config(run_config, tmp_path)
    before = sorted(tmp_path.iterdir())
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'mlflow', 'deepspeed'])); from launch.cli import main; main()"
    arguments = ["submit", str(path), "--gpus-per-node", "2", "--dry-run", "--sweep", "seed=[1, 2]"]
    command, without_slurm = [sys.executable, "-c", blocked, *arguments], {"PATH": "/nowhere"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=without_slurm)
    assert done.returncode == 0, done.stderr
    assert f"RUNS=({tmp_path}/runs/tiny-sweep-001/tiny-001 {tmp_path}/runs/tiny-sweep-001/tiny-002)" in done.stdout
    assert sorted(tmp_path.iterdir()) == before
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=REPOSITORY)
    assert json.loads(as_json.stdout)["submitted"] is False


def test_the_snapshot_is_the_code_that_runs(tmp_path: Path) -> None:
    snapshot(tmp_path / "code")
    (tmp_path / "code" / "tdformer" / "__init__.py").write_text('__version__ = "of the snapshot"\n')
    environment = {"PYTHONPATH": str(tmp_path / "code"), "PYTHONSAFEPATH": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", "import tdformer, launch; print(tdformer.__version__, launch.__file__)"]
    shown = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert shown.split("\n")[0] == f"of the snapshot {tmp_path}/code/launch/__init__.py"
    assert (tmp_path / "code" / "launch" / "train.sbatch").exists()


# --- crash loops ---------------------------------------------------------------------------


def start(run: Path, restart: int, monkeypatch: pytest.MonkeyPatch, job: str = "5", **limits: str) -> str:
    for name, value in {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart), "SLURM_JOB_NODELIST": "n[1-2]", **limits}.items():
        monkeypatch.setenv(name, value)
    return begin(RunDir(run))


def reach(run: Path, step: int) -> None:
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")


def test_starts_with_progress_may_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for restart in range(20):
        assert f"job 5, restart {restart}, on n[1-2]" in start(tmp_path, restart, monkeypatch)
        if restart % 2:
            reach(tmp_path, restart)


def test_starts_without_progress_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reach(tmp_path, 7)
    for restart in range(3):
        start(tmp_path, restart, monkeypatch)
    with pytest.raises(UserError, match=r"started 3 times from step-00000007 .* tdformer submit"):
        start(tmp_path, 3, monkeypatch)
    start(tmp_path, 0, monkeypatch, job="6")  # A new submission starts again from zero.


def test_restarts_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = {attempts.MAX_RESTARTS: "2"}
    for restart in range(3):
        start(tmp_path, restart, monkeypatch, **limit)
        reach(tmp_path, restart)
    with pytest.raises(UserError, match="put back into the queue 2 times, which is all that max_restarts allows"):
        start(tmp_path, 3, monkeypatch, **limit)


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path, 0, monkeypatch)
    with (tmp_path / "slurm" / "attempts.jsonl").open("a") as file:
        file.write('{"job": "5", "rest')
    assert [attempt.restart for attempt in attempts.read(RunDir(tmp_path))] == [0]
    assert attempts.read(RunDir(tmp_path / "nowhere")) == []


@pytest.mark.parametrize(
    "option", ["--no-requeue", "--array=0-3", "--signal=B:USR1@60", "--time=00:00:10", "-t 10", "--wrap=ls", "constraint=a100"]
)
def test_options_that_a_job_could_not_do_its_work_with_are_refused(tmp_path: Path, option: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"sbatch": [option]}))
    with pytest.raises(ConfigError, match="sbatch"):
        load_cluster(path)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A controller that does not answer: a script that a test may replace."""
    path = tmp_path / "bin" / "scontrol"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2\nexit 1\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    return path


def test_a_controller_that_is_away_is_asked_again_and_the_job_comes_back(
    tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, log = RunDir(tmp_path / "run"), tmp_path / "asked"
    run_dir.path.mkdir()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    away = scontrol.read_text().splitlines()[1]
    scontrol.write_text(
        f"#!/bin/sh\necho $1 >> {log}\nif [ $(wc -l < {log}) -lt 3 ]; then {away}; exit 1; fi\n"
        f"[ $1 = requeue ] || echo JobId=7 JobState=RUNNING\n"
    )
    assert "is put back into the queue" in requeue.end(run_dir, 75)
    assert log.read_text().split() == ["show", "show", "show", "requeue"]


def test_a_controller_that_stays_away_is_no_answer(tmp_path: Path, scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue, "PATIENCE", Patience(0.0))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "run").mkdir()
    with pytest.raises(UnavailableError, match="Slurm does not say what became of job 7"):
        requeue.end(RunDir(tmp_path / "run"), 75)
    scontrol.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n")
    assert scheduler.state("7") is None


def test_a_latest_that_cannot_be_read_now_is_not_damaged(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "run")
    run_dir.checkpoints.mkdir(parents=True)
    assert attempts.latest(run_dir) is None
    run_dir.latest.symlink_to("/proc/self/mem")
    with pytest.raises(UnavailableError, match="cannot be read now"):
        attempts.latest(run_dir)
    run_dir.latest.unlink()
    run_dir.latest.write_text("nonsense")
    assert attempts.latest(run_dir) == "a damaged latest"
