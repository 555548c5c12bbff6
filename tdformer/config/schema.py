"""RunConfig: one run as a typed tree. Every component gets its own section of it, never the whole.

Imports no torch, so that a login node can read and check a configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from data_pipelines.config import DataConfig, Section
from tdformer.config.model import ModelConfig
from tdformer.config.training import OptimizerConfig, Positive, TrainingConfig

StopSignal = Literal["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"]


class CheckpointConfig(Section):
    """Describes when the training state is saved. It is always saved at the end of an epoch and when the run is told to stop."""

    every_steps: Positive | None = None
    """Optimizer steps between two saves within an epoch. null: no such saves."""
    every_minutes: Annotated[float, Field(gt=0)] | None = 30.0
    """Minutes after the last save until the next one. null: no such saves."""
    keep_last: Positive = 2
    """Number of newest checkpoints that stay. The best one by validation top-1 stays too, and older ones are removed."""
    keep_every: Positive | None = None
    """Checkpoints whose step is a multiple of this number stay too. null: none."""
    background: bool = True
    """true: a thread writes checkpoints while training goes on. false: training waits for them."""
    on_failure: Literal["go_on", "stop"] = "go_on"
    """Reaction to a checkpoint that cannot be written. At the end of a run, and when it is told to stop, that is an error."""


class TrackingConfig(Section):
    """Describes how MLflow tracks the run. Rank 0 sends."""

    uri: str = "sqlite:///runs/mlflow.db"
    """MLflow tracking URI. sqlite needs no server."""
    experiment: str = "tdformer"
    """Name of the MLflow experiment."""
    system_metrics: bool = True
    """true: record CPU, memory and GPU use of rank 0's node every ten seconds."""
    log_model: Literal["none", "best", "latest"] = "none"
    """Checkpoint whose network a finished run sends to MLflow as the artifact `model`, as `tdformer checkpoint export` writes it. If the
    run keeps averaged weights, those are sent."""
    register_as: Annotated[str, Field(pattern=r"^[^/:]+$", max_length=200)] | None = None
    """Name in MLflow's model registry under which that network is registered with its validation metrics. null: it is not registered."""

    @field_validator("uri")
    @classmethod
    def _uri_is_fit_to_be_read(cls, uri: str) -> str:
        if not uri.strip():
            raise ValueError("must name a tracking URI, such as sqlite:///runs/mlflow.db")
        if uri in ("sqlite://", "sqlite:///") or ":memory:" in uri:
            raise ValueError("must name a file, such as sqlite:///runs/mlflow.db: a database in memory keeps nothing")
        if uri.startswith(("http://", "https://")) and "@" in uri.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "must hold no user and password, which would be written into run directories: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        return uri

    @model_validator(mode="after")
    def _model_is_logged(self) -> TrackingConfig:
        if self.register_as and self.log_model == "none":
            raise ValueError("register_as needs log_model: best or latest, which says what is registered")
        return self


class PreemptionConfig(Section):
    """Describes what tells a run to stop. It then finishes the step, saves, and exits with code 75. The same command goes on with it."""

    signals: tuple[StopSignal, ...] = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    """Signals that stop the run. Other signals keep their usual effect. SIGHUP comes when a terminal is lost; under nohup it is ignored."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes after the start of a process at which the run stops. null: no such deadline."""
    minutes_before_end: Annotated[float, Field(gt=0)] | None = 5.0
    """Minutes before the end of a Slurm job at which the run stops, or half of the job's time if that comes later. null: no such stop."""


class WatchdogConfig(Section):
    """Describes when a rank without progress counts as hanging.

    The rank is then named, stack traces are written to RUN/stacks/, and the run ends on all ranks. A rank that dies ends it at once.
    """

    timeout_s: Annotated[float, Field(ge=1)] | None = 600.0
    """Seconds that one step, or one batch of an evaluation, may take. null: no limit."""
    slow_timeout_s: Annotated[float, Field(ge=1)] | None = 1800.0
    """Seconds that starting and saving may take. null: no limit."""


class ProfilingConfig(Section):
    """Describes what is measured besides a run's usual metrics. It changes nothing that is computed."""

    trace_steps: tuple[Positive, Positive] | None = None
    """First and last optimizer step of a profiler trace of rank 0, which is written to RUN/traces/. null: no trace."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Peak TFLOP/s of one device at the run's precision, for MFU. null: a table of known GPUs decides, and other devices get no MFU."""

    @model_validator(mode="after")
    def _steps_are_in_order(self) -> ProfilingConfig:
        if self.trace_steps is not None and self.trace_steps[0] > self.trace_steps[1]:
            raise ValueError(f"trace_steps must be [first, last] with first <= last, got {list(self.trace_steps)}")
        return self


class RunConfig(Section):
    """Describes everything that defines a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    """Prefix of the run directories and of the run's name in MLflow."""
    output: Path = Path("runs")
    """Folder in which run directories are made."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, the sample order, augmentation and drop path."""
    init: Path | None = None
    """Weights to start from: a folder written by `tdformer checkpoint import` or `export`, a run directory (its latest checkpoint), a
    checkpoint, or RUN/checkpoints/best. They may come from any image size.

    Of a checkpoint the plain weights are taken; `export --ema` gives averaged ones. Top-down weights and a head that are missing there
    start fresh. The weights are read once, when the run begins."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    preemption: PreemptionConfig = PreemptionConfig()
    watchdog: WatchdogConfig = WatchdogConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> RunConfig:
        stride = self.model.backbone.stride
        if self.data.image_size % stride:
            raise ValueError(f"data.image_size must be a multiple of {stride} (the backbone's stride), got {self.data.image_size}")
        if self.model.backbone.in_channels not in (2, 3):
            raise ValueError(f"model.backbone.in_channels must be 3 (RGB images) or 2 (events), got {self.model.backbone.in_channels}")
        tokens = (self.data.image_size // stride) ** 2 * self.model.time_steps // self.model.segments
        if tokens * self.training.micro_batch < 2:
            raise ValueError("BatchNorm needs more than one value per channel: raise training.micro_batch or data.image_size")
        if self.data.augment.mixes and self.training.micro_batch % 2:
            raise ValueError(
                f"training.micro_batch must be even with mixup or cutmix, which pair its images, got {self.training.micro_batch}"
            )
        if self.training.global_batch % self.data.augment.repeats:
            raise ValueError(
                f"training.global_batch must be a multiple of data.augment.repeats, got {self.training.global_batch} and "
                f"{self.data.augment.repeats}"
            )
        if self.optimizer.cooldown_epochs >= self.training.epochs:
            raise ValueError(
                f"optimizer.cooldown_epochs must be less than training.epochs, which counts them, got {self.optimizer.cooldown_epochs} "
                f"and {self.training.epochs}"
            )
        self.training.accumulation(world_size=1)
        return self

    def learning_rate(self) -> float:
        """Return the peak learning rate, scaled to the global batch."""
        return self.optimizer.base_lr * self.training.global_batch / self.optimizer.base_batch
