"""StudyConfig: settings x seeds of one configuration, as one YAML file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from data_pipelines.config import Section
from data_pipelines.errors import UserError
from tdformer.config.schema import RunConfig
from tdformer.config.yaml_io import checked, load_config, read_yaml

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
OWN = ("seed", "name", "output")
"""Keys that a study sets itself."""
PAPERS_SEEDS = (0, 42, 2024, 3407, 114514)


class StudyConfig(Section):
    """Describes a study: every setting is trained with every seed."""

    name: Name
    """Name of the study, and of the folder of its runs."""
    base: Path
    """The configuration that all runs start from. A relative path starts at the folder in which the command is given."""
    output: Path = Path("runs")
    """Folder in which the folder of the study is made."""
    settings: dict[Name, dict[str, Any]]
    """The settings by name. Each holds what it changes, by dotted keys, such as model.segments: 1. An empty one is the base itself."""
    shared: dict[str, Any] = Field(default_factory=dict)
    """Values by dotted keys that all runs have in place of the base's."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = PAPERS_SEEDS
    """The seeds. The paper's are 0, 42, 2024, 3407 and 114514."""
    baseline: str | None = None
    """The setting that the others are compared with. null: the first."""
    metric: str = "val/top1"
    """The metric that is compared: its last value in each run."""

    @model_validator(mode="after")
    def _fits(self) -> StudyConfig:
        if not self.settings:
            raise ValueError("settings must hold at least one setting")
        if self.baseline is not None and self.baseline not in self.settings:
            raise ValueError(f"baseline must be one of the settings ({', '.join(self.settings)}), got {self.baseline}")
        if not self.seeds:
            raise ValueError("seeds must hold at least one seed")
        if len({name.lower() for name in self.settings}) < len(self.settings):
            raise ValueError(f"settings must differ in more than upper and lower case, got {', '.join(self.settings)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        for name, changes in {"shared": self.shared, **self.settings}.items():
            try:
                json.dumps(changes)
            except (TypeError, ValueError, RecursionError):
                raise ValueError(f"{name} must hold numbers, texts, true, false, null, and lists and sections of them") from None
            if own := [key for key in changes if key in OWN]:
                raise ValueError(f"{name} must leave {own[0]} to the study")
        return self

    @property
    def reference(self) -> str:
        """The name of the setting that the others are compared with."""
        return self.baseline or next(iter(self.settings))

    @property
    def folder(self) -> Path:
        return self.output / self.name

    def runs(self) -> Iterator[StudyRun]:
        """Yield all runs, seed by seed: after the first seed, every setting has a run."""
        for seed in self.seeds:
            for setting, changes in self.settings.items():
                values = {**self.shared, **changes, "name": setting, "output": str(self.folder), "seed": seed}
                overrides = tuple(f"{key}={json.dumps(value)}" for key, value in values.items())
                yield StudyRun(setting, seed, self.folder / f"{setting}-seed-{seed}", overrides)


class StudyRun(NamedTuple):
    """One run of a study."""

    setting: str
    seed: int
    path: Path
    """The run directory."""
    overrides: tuple[str, ...]


def load_study(path: Path) -> tuple[StudyConfig, dict[str, RunConfig]]:
    """Read a study, and the configuration of each setting at the first seed. Raises ConfigError if one of them cannot be run."""
    study = checked(StudyConfig, read_yaml(path), f"study {path} cannot be run")
    configs: dict[str, RunConfig] = {}
    for run in study.runs():
        if run.setting not in configs:
            try:
                configs[run.setting] = load_config(study.base, run.overrides)
            except UserError as error:
                raise type(error)(f"setting {run.setting} of study {path}: {error}") from None
    return study, configs
