"""Defines the settings of a cluster as a typed tree. There is one YAML file per cluster, which is not part of any run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from data_pipelines.config import Section
from tdformer.config.yaml_io import checked, read_yaml


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"must be one line of text, got {text!r}")
    return text


def _duration(text: str) -> str:
    if not (seconds := seconds_of(text)):
        why = "must be longer than no time" if seconds == 0 else "must be a time as Slurm writes it: minutes, HH:MM:SS or DAYS-HH:MM:SS"
        raise ValueError(f"{why}, got {text!r}")
    return text


def seconds_of(duration: str) -> int | None:
    """Return a duration that Slurm writes as MINUTES[:SECONDS], HOURS:MINUTES:SECONDS or DAYS-HOURS[:MINUTES[:SECONDS]]; None for others.

    A number may exceed its unit (90 minutes) only if it is the first one.
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d\d?){0,2}", duration, re.ASCII):
        return None
    days, dash, rest = duration.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if len(numbers) < 3:
        numbers = [*numbers, *[0] * (3 - len(numbers))] if dash else [0, *numbers, *[0] * (2 - len(numbers))]
    hours, minutes, seconds = numbers
    is_first = not dash and rest.count(":") < 2
    if seconds > 59 or (minutes > 59 and not is_first) or (hours > 23 and dash):
        return None
    return 86_400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds


def _text(value: object) -> object:
    """Return a number as text, so that numbers need no quotes in YAML."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Line = Annotated[str, BeforeValidator(_text), AfterValidator(_one_line)]
Word = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[^\s]+$")]
Duration = Annotated[str, BeforeValidator(_text), AfterValidator(_duration)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class ContainerConfig(Section):
    """The container in which ranks run. Its Python needs the dependencies of this project. The code comes from the run directory."""

    runtime: Literal["pyxis", "apptainer"]
    """pyxis is a plugin of Slurm for Enroot (srun --container-image). apptainer is started by its own command, with --nv."""
    image: Line
    mounts: tuple[Line, ...] = ()
    """Folders that ranks need, as SOURCE or SOURCE:TARGET. The run directory and the folder of the submission are always mounted."""
    python: Word = "python"


OURS = {
    "time": "set time, or give --time",
    "t": "set time, or give --time",
    "signal": "set warning_signal and warning_s",
    "array": "tdformer submit --sweep makes arrays",
    "a": "tdformer submit --sweep makes arrays",
    "no-requeue": "set max_restarts: 0 for a job that does not come back",
    "wrap": "setup holds lines that run before the ranks",
    "nodes": "give --nodes",
    "N": "give --nodes",
    "ntasks": "give --gpus-per-node or --processes-per-node",
    "n": "give --gpus-per-node or --processes-per-node",
    "ntasks-per-node": "give --gpus-per-node or --processes-per-node",
    "output": "logs lie in the run directory",
    "o": "logs lie in the run directory",
    "chdir": "a job runs in the folder of its submission",
    "D": "a job runs in the folder of its submission",
}
"""Options of sbatch that a job could not do its work with, and what to do instead."""


class ClusterConfig(Section):
    """The settings for jobs on one cluster. Options of `tdformer submit` take precedence."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    time: Duration | None = None
    """The time limit of one job. A longer run is requeued. null means the default of the partition."""
    cpus_per_process: Annotated[int, Field(ge=1)] | None = None
    memory: Word | None = None
    """Memory per node as in sbatch --mem, such as 480G. 0 means all memory."""
    sbatch: tuple[Line, ...] = ()
    """More options of sbatch, such as --constraint=a100."""
    modules: tuple[Line, ...] = ()
    """Environment modules to load."""
    setup: tuple[Line, ...] = ()
    """Shell lines that run on the first node before the ranks start."""
    environment: dict[Variable, Line] = Field(default_factory=dict)
    """Environment variables of all ranks."""
    container: ContainerConfig | None = None
    launcher: Literal["srun", "torchrun"] = "srun"
    """With srun, Slurm starts every rank. With torchrun, Slurm starts torchrun on every node."""
    warning_s: Annotated[int, Field(ge=1, le=65535)] = 300
    """Seconds before the end of its time at which a job gets the warning signal. Slurm may send it up to a minute earlier."""
    warning_signal: Literal["SIGUSR1", "SIGUSR2", "SIGTERM"] = "SIGUSR1"
    """The warning signal, which must be one of preemption.signals. SIGUSR2 is for an older NCCL that catches SIGUSR1."""
    max_restarts: Annotated[int, Field(ge=0)] = 100
    """The largest number of restarts. After it the job is not requeued again."""
    max_fruitless: Annotated[int, Field(ge=1)] = 3
    """The largest number of starts in a row from the same checkpoint. After it the job is not requeued, because it is in a crash loop."""

    @field_validator("sbatch")
    @classmethod
    def _leaves_our_options_alone(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if not option.startswith("-"):
                raise ValueError(f"must hold options of sbatch, such as --constraint=a100, got {option}")
            name = option.lstrip("-").partition("=")[0].split(maxsplit=1)[0] if option.strip("- ") else ""
            if name in OURS:
                raise ValueError(f"{option} is not for sbatch here: {OURS[name]}")
        return options


def load_cluster(path: Path | None) -> ClusterConfig:
    """Read the file of a cluster, or return the defaults without one.

    Raises ConfigError, which names the key, the value and what is allowed.
    """
    if path is None:
        return ClusterConfig()
    return checked(ClusterConfig, read_yaml(path), f"cluster file {path} cannot be used")


def with_options(cluster: ClusterConfig, options: dict[str, str | None]) -> ClusterConfig:
    """Return the settings with the options of the command line in place of those of the file. Raises ConfigError."""
    given = {name: value for name, value in options.items() if value is not None}
    return checked(ClusterConfig, {**cluster.model_dump(), **given}, "the job cannot be submitted")
