"""Which place a process finds itself in, by what started it."""

from __future__ import annotations

import pytest

from data_pipelines.errors import UserError
from tdformer.distributed.launch_environment import VARIABLES, gpu_index, launcher_variables, rank_in, started_by_launcher

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
    assert not started_by_launcher({})
    assert rank_in({}) == 0


def test_torchruns_variables_are_taken_as_they_are() -> None:
    given = dict(zip(VARIABLES, ("1", "2", "1", "host", "99"), strict=True))
    assert launcher_variables({**given, **SRUN}) == given
    assert started_by_launcher(given)
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
