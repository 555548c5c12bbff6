"""Describes this start of a run: machine, job, versions, commit."""

from __future__ import annotations

import os
import platform
import socket
import time
from importlib.metadata import version

import torch

from tdformer.checkpoint.train_state import TrainState
from tdformer.distributed.context import DistContext
from tdformer.rundir.code_version import code_version
from tdformer.rundir.sessions import Session

COMPUTE = ("torch", "deepspeed", "timm", "spikingjelly")


def new_session(context: DistContext, train_state: TrainState) -> Session:
    """Return the record of a run that this process starts, or goes on with, from a state."""
    on_gpu, environment, now = context.device.type == "cuda", os.environ, time.time()
    job = environment.get("SLURM_JOB_ID")
    if array := environment.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{environment.get('SLURM_ARRAY_TASK_ID')}"
    restart = environment.get("SLURM_RESTART_COUNT", "0") if job else None
    versions = {name: version(name) for name in COMPUTE} | {"python": platform.python_version()}
    if on_gpu:
        versions["cuda"] = str(torch.version.cuda)
    return Session(
        began=now,
        seen=now,
        world_size=context.world_size,
        gpus=context.world_size if on_gpu else 0,
        device=torch.cuda.get_device_name(context.device) if on_gpu else "cpu",
        host=socket.gethostname(),
        reduction=train_state.reduction,
        first_step=train_state.step,
        step=train_state.step,
        slurm_job=job,
        restart=int(restart) if restart is not None and restart.isdigit() else None,
        commit=code_version(),
        versions=versions,
    )
