"""Which place a process finds itself in, by what started it."""

from __future__ import annotations

import pytest

from data_pipelines.errors import UserError
from tdformer.distributed.idle_gpus import Place, note
from tdformer.distributed.launch_environment import VARIABLES, gpu_index, launcher_variables, must_start, rank_in, without_launcher

SRUN = {
    "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
}


def test_a_process_started_alone_is_a_world_of_one() -> None:
    variables = launcher_variables({"SLURM_JOB_ID": "12"})  # within a batch script, but not by srun
    assert (variables["RANK"], variables["WORLD_SIZE"], variables["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    assert must_start(2, {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "8"})
    assert not must_start(1, {})
    assert rank_in({}) == 0


def test_torchruns_variables_are_taken_as_they_are() -> None:
    given = dict(zip(VARIABLES, ("1", "2", "1", "host", "99"), strict=True))
    assert launcher_variables({**given, **SRUN}) == given
    assert not must_start(1, given)
    assert rank_in(given) == 1


def test_sruns_variables_are_translated() -> None:
    variables = launcher_variables({**SRUN, "MASTER_ADDR": "n1"})
    assert [variables[name] for name in VARIABLES[:4]] == ["3", "4", "1", "n1"]
    assert 20000 <= int(variables["MASTER_PORT"]) < 40000
    assert launcher_variables({**SRUN, "MASTER_ADDR": "n1", "SLURM_PROCID": "0"})["MASTER_PORT"] == variables["MASTER_PORT"]
    assert rank_in(SRUN) == 3


def test_each_process_gets_its_gpu() -> None:
    assert [gpu_index({"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "4"}, visible=4) for rank in range(4)] == [0, 1, 2, 3]
    assert gpu_index({"LOCAL_RANK": "3"}, visible=1) == 0  # bound by srun: each task sees one GPU
    with pytest.raises(UserError, match=r"8 processes were started on a machine that shows 4 GPU\(s\)"):
        gpu_index({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "8"}, visible=4)


def test_half_set_variables_are_refused() -> None:
    with pytest.raises(UserError, match="RANK is set but WORLD_SIZE is not"):
        launcher_variables({"RANK": "0"})
    with pytest.raises(UserError, match="RANK is set but WORLD_SIZE is not"):
        must_start(2, {"RANK": "0"})


def test_a_rank_that_is_no_number_is_refused() -> None:
    given = dict(zip(VARIABLES, ("first", "2", "1", "host", "99"), strict=True))
    with pytest.raises(UserError, match="RANK is 'first' and no number"):
        launcher_variables(given)
    assert rank_in(given) == 0


ALONE = {
    "nothing": {},
    "a batch script": {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    "srun": {**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
    "the shell of salloc": {**SRUN, "SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"},
    "torchrun": dict(zip(VARIABLES, ("0", "1", "0", "host", "99"), strict=True)),
    "Open MPI": {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    "MPICH": {"PMI_RANK": "0", "PMI_SIZE": "1"},
}
SEVERAL = {
    "srun": SRUN,
    "an older srun": {"SLURM_NPROCS": "4", **{name: SRUN[name] for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID")}},
    "torchrun": dict(zip(VARIABLES, ("1", "4", "1", "host", "99"), strict=True)),
    "mpirun": {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
    "mpiexec": {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1"},
}


@pytest.mark.parametrize("name", ALONE)
def test_a_process_that_is_the_only_one_starts_those_that_are_asked_for(name: str) -> None:
    assert must_start(2, ALONE[name])
    assert not must_start(1, ALONE[name])
    assert launcher_variables(ALONE[name])["WORLD_SIZE"] == "1"


@pytest.mark.parametrize("name", SEVERAL)
def test_processes_of_a_launcher_start_no_others(name: str) -> None:
    with pytest.raises(
        UserError, match=r"has started 4 processes, and --processes 2 asks each of them to start 2 more; leave --processes out"
    ):
        must_start(2, SEVERAL[name])
    assert not must_start(1, SEVERAL[name])


@pytest.mark.parametrize("name", ["mpirun", "mpiexec"])
def test_ranks_of_mpi_need_a_place_to_meet(name: str) -> None:
    """Otherwise each of them would train a run of its own."""
    with pytest.raises(UserError, match=f"{name} has started 4 processes, which do not know where to meet: set MASTER_ADDR"):
        launcher_variables(SEVERAL[name])
    variables = launcher_variables({**SEVERAL[name], "MASTER_ADDR": "n1", "MASTER_PORT": "99"})
    assert [variables[name] for name in VARIABLES] == ["1", "4", "1", "n1", "99"]
    assert rank_in(SEVERAL[name]) == 1


def test_a_node_list_that_nothing_can_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may lack scontrol."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"the first of the nodes n\[1-2\] cannot be found out .*; set MASTER_ADDR"):
        launcher_variables(SRUN)


def test_ranks_do_not_see_the_torchrun_that_started_their_launcher() -> None:
    """The variable makes torch look for a server that torchrun runs elsewhere."""
    assert without_launcher({"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_ID": "mine"}) == {"GROUP_ID": "mine"}


def test_gpus_that_nobody_uses_are_told() -> None:
    eight = tuple(f"GPU-{number}" for number in range(8))
    assert note([Place("n1", gpu, eight) for gpu in eight]) == []
    assert note([Place("n1", gpu, (gpu,)) for gpu in eight]) == [], "srun shows each task its own GPU alone"
    assert note([Place("n1", "GPU-0", ("GPU-0",))]) == []
    (text,) = note([Place("n1", "GPU-0", eight)])
    assert text.startswith("7 of the 8 GPUs that n1 shows compute nothing for this run; start one process for each")
    (text,) = note([*(Place("n1", gpu, eight) for gpu in eight), *(Place("n2", gpu, eight) for gpu in eight[:6])])
    assert text.startswith("2 of the 8 GPUs that n2 shows")
