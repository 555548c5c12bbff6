"""What a cluster wants of its jobs, as a typed tree. One YAML file per cluster, not part of any run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from data_pipelines.config import Section
from tdformer.config.yaml_io import checked, read_yaml


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"must be one line of text, got {text!r}")
    return text


def _duration(text: str) -> str:
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d?){0,2}", text):
        raise ValueError(f"must be a time as Slurm writes it: minutes, HH:MM:SS or DAYS-HH:MM:SS, got {text!r}")
    return text


def _text(value: object) -> object:
    """Numbers need no quotes in YAML."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Line = Annotated[str, BeforeValidator(_text), AfterValidator(_one_line)]
Word = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[^\s]+$")]
Duration = Annotated[str, BeforeValidator(_text), AfterValidator(_duration)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ContainerConfig(Section):
    """The image in which ranks run. Its Python needs this project's dependencies; the code comes from the run directory."""

    runtime: Literal["pyxis", "apptainer"]
    """pyxis: Slurm's plugin for Enroot (srun --container-image). apptainer: by its own command, with --nv."""
    image: Line
    mounts: tuple[Line, ...] = ()
    """Folders that ranks need besides the run directory and the folder of the submission, as SOURCE or SOURCE:TARGET."""
    python: Word = "python"


class ClusterConfig(Section):
    """How jobs are made on one cluster. Options of `tdformer submit` go before it."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    time: Duration | None = None
    """Of one job; a run that needs longer is put back into the queue. null: the partition's default."""
    cpus_per_process: Annotated[int, Field(ge=1)] | None = None
    memory: Word | None = None
    """Per node, as sbatch's --mem: 480G; 0 for all of it."""
    sbatch: tuple[Line, ...] = ()
    """Further options of sbatch, such as --constraint=a100."""
    modules: tuple[Line, ...] = ()
    """To load."""
    setup: tuple[Line, ...] = ()
    """Shell lines that run on the first node before the ranks start."""
    environment: dict[Variable, Line] = Field(default_factory=dict)
    """Variables of all ranks."""
    container: ContainerConfig | None = None
    launcher: Literal["srun", "torchrun"] = "srun"
    """srun: Slurm starts every rank. torchrun: Slurm starts torchrun on every node."""
    warning_s: Annotated[int, Field(ge=1, le=65535)] = 300
    """So long before the end of its time a job is told to stop. It may be told up to a minute earlier."""
    warning_signal: Literal["SIGUSR1", "SIGUSR2", "SIGTERM"] = "SIGUSR1"
    """Must be one of preemption.signals. SIGUSR2 where an older NCCL catches the other."""
    max_restarts: Annotated[int, Field(ge=0)] = 100
    """After so many the job is not put back into the queue again."""
    max_fruitless: Annotated[int, Field(ge=1)] = 3
    """Nor after so many starts in a row from the same checkpoint: a crash loop."""


def load_cluster(path: Path | None) -> ClusterConfig:
    """Raises ConfigError, which names the key, the value and what is allowed."""
    if path is None:
        return ClusterConfig()
    return checked(ClusterConfig, read_yaml(path), f"cluster file {path} cannot be used")


def with_options(cluster: ClusterConfig, options: dict[str, str | None]) -> ClusterConfig:
    """With what was given on the command line in place of what the file says."""
    given = {name: value for name, value in options.items() if value is not None}
    return checked(ClusterConfig, {**cluster.model_dump(), **given}, "the job cannot be submitted")
