"""Chain: trainings that follow each other, each from the best weights of the one before, in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipelines.errors import UserError
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.locations import is_remote
from data_pipelines.storage.passing_trouble import is_passing, unavailable
from tdformer.config import RunConfig
from tdformer.config.chain import chain_of
from tdformer.config.yaml_io import ConfigError, did_you_mean, load_config, parse_override
from tdformer.rundir import creation
from tdformer.rundir.run_dir import RunDir
from tdformer.runs import reader
from tdformer.runs.comparison import outcome
from tdformer.runs.discovery import is_run
from tdformer.runs.states import State

FILE = "recipe.json"
"""The file in the folder of a chain that says what was asked for."""
TOP1 = "val/top1"


class Request(BaseModel):
    """What was asked for. It is kept in the folder of the chain, so that the folder alone goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str
    """The configuration of the last stage: a path, or the name of one that comes with the program."""
    overrides: list[str]
    first: str | None
    stages: list[str] = Field(min_length=1)
    """The names of the stages, in order. Their runs lie in folders of these names."""


@dataclass(frozen=True)
class Stage:
    """One training of a chain."""

    file: Path
    config: RunConfig
    overrides: Sequence[str]
    run_dir: RunDir

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def has_begun(self) -> bool:
        """True if it has a checkpoint. Its initial weights are then not read again."""
        return self.run_dir.latest.exists()

    @property
    def state(self) -> State:
        return reader.read(self.run_dir.path).state if self.run_dir.path.is_dir() else "new"

    def check(self) -> None:
        """Raise UserError unless the stage's folder is free for it, or holds it with the same configuration."""
        if self.name == FILE:
            raise UserError(f"a stage has the name {FILE}, which is that of a file in its folder; give it another name.")
        if self.run_dir.path.exists() and not self.run_dir.path.is_dir():
            raise UserError(f"{self.run_dir} is a file, where the run of stage {self.name} would lie; give another --folder.")
        if not self.run_dir.config.exists():
            creation.check_fits(self.run_dir, self.config)
        elif changed := creation.fixed_differences(load_config(creation.config_of(self.run_dir.path)), self.config):
            raise UserError(
                f"{self.run_dir} holds stage {self.name} with another configuration; give the recipe as it was begun, or another --folder. "
                f"Different are: {'; '.join(changed)}"
            )


@dataclass(frozen=True)
class Chain:
    """The stages of a recipe, in the order of their training. Each but the first starts from the best checkpoint of the one before."""

    folder: Path
    stages: Sequence[Stage]
    request: Request

    def check(self) -> None:
        """Raise UserError unless the folder is free for this chain, or holds it with the same configurations."""
        self._check_folder()
        for stage in self.stages:
            stage.check()
        for earlier, later in pairwise(self.stages):
            if later.has_begun and earlier.state != "finished":
                raise UserError(
                    f"stage {later.name} has begun from the weights of {earlier.run_dir}, which is gone, or not finished; bring that back, "
                    f"or remove {later.run_dir}, or begin with --first {later.file.stem} in another --folder."
                )

    def notes(self) -> list[str]:
        """Return sentences about what is not on this machine."""
        data = {stage.config.data.train for stage in self.stages}
        absent = sorted(location for location in data if not is_remote(location) and not Path(location).exists())
        notes = [f"data.train is {location}, which is not on this machine: the data was not checked" for location in absent]
        return notes + ([f"{missing}, which is not on this machine"] if (missing := self._missing_init()) else [])

    def claim(self) -> None:
        """Make the folder the folder of this chain. Raises UserError if it cannot be written, or if initial weights are missing."""
        self.check()
        if missing := self._missing_init():
            raise UserError(f"{missing}, which is not there; make it first, see the head of {self.stages[0].file.name}.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / FILE, lambda partial: partial.write_text(self.request.model_dump_json(indent=1) + "\n"))
        except OSError as error:
            if is_passing(error):
                raise unavailable(f"folder {self.folder}", error) from None
            raise UserError(f"folder {self.folder} cannot be written ({error.strerror}); choose another --folder.") from None

    def _check_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file; give another --folder.")
        if is_run(self.folder):
            raise UserError(f"{self.folder} is a run directory; give another --folder.")
        names = [stage.name for stage in self.stages]
        if (found := request_in(self.folder)) is None:
            others = [entry.name for entry in self.folder.glob("[!.]*") if entry.name not in names] if self.folder.is_dir() else []
            if others:
                raise UserError(f"{self.folder} holds other things than a recipe ({min(others)}); give another --folder.")
        elif found.stages != names and any((self.folder / name).exists() for name in found.stages):
            raise UserError(
                f"{self.folder} holds a recipe of other stages ({', '.join(found.stages)}); give the same --first as before, or another "
                f"--folder."
            )

    def _missing_init(self) -> str | None:
        first = self.stages[0]
        init = first.config.init
        return None if init is None or init.exists() or first.has_begun else f"stage {first.name} starts from {init}"


def make_chain(target: Path, overrides: Sequence[str], first: str | None, folder: Path | None) -> Chain:
    """Return the chain that a configuration is the last of, or the one in a folder.

    overrides: they change every stage; `init` changes the first one alone. first: the name of the stage to begin with, from its own
    `init`. folder: None is <output>/<name of the last stage>-recipe. Raises UserError.
    """
    if target.is_dir():
        return _chain_in(target, overrides, first, folder)
    given = {parse_override(override)[0]: override for override in overrides}
    if "name" in given:
        raise UserError("the stages of a recipe have names of their own; leave out name=…, and give --folder for another folder.")
    of_first = [given["init"]] if "init" in given else []
    of_all = [override for override in overrides if override not in of_first]
    files = _from(first, chain_of(target))
    named = [load_config(file, of_all) for file in files]
    names = [config.name for config in named]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two stages of {target} have the name {twice[0]}; give each file a name of its own")
    folder = folder or named[-1].output / f"{names[-1]}-recipe"
    kept = [override for override in of_all if override != given.get("output")]
    stages: list[Stage] = []
    for file, name in zip(files, names, strict=True):
        run_dir = RunDir(folder / name)
        init = [_init_override(run_dir, stages[-1].run_dir.best)] if stages else of_first
        own = [*kept, f"output={_as_yaml(folder)}", *init]
        stages.append(Stage(file, load_config(file, own), own, run_dir))
    request = Request(target=str(target.absolute() if target.exists() else target), overrides=list(overrides), first=first, stages=names)
    return Chain(folder, stages, request)


def _chain_in(folder: Path, overrides: Sequence[str], first: str | None, other: Path | None) -> Chain:
    if (request := request_in(folder)) is None:
        raise UserError(f"{folder} is no folder of a recipe: it has no {FILE}; give a configuration, or the folder of one that was begun.")
    if overrides or first or other:
        raise UserError(f"the recipe in {folder} goes on as it was begun; leave out overrides, --first and --folder.")
    return make_chain(Path(request.target), request.overrides, request.first, folder)


def _init_override(run_dir: RunDir, best: Path) -> str:
    """Return where a stage starts from. A run that has begun keeps what it says, since its folder may have been moved since."""
    recorded = load_config(run_dir.config).init if run_dir.latest.exists() and run_dir.config.exists() else best
    return f"init={_as_yaml(recorded)}"


def _as_yaml(path: Path | None) -> str:
    return json.dumps(None if path is None else str(path), ensure_ascii=False)


def _from(first: str | None, files: list[Path]) -> list[Path]:
    if first is None:
        return files
    wanted = first.removesuffix(".yaml")
    for index, file in enumerate(files):
        if f"/{file.with_suffix('')}".endswith(f"/{wanted.lstrip('/')}"):
            return files[index:]
    names = [file.stem for file in files]
    raise UserError(f"the recipe has no stage {first}, its stages are {', '.join(names)}{did_you_mean(wanted, names)}")


def chain_around(run: Path) -> list[Path]:
    """Return the run directories of the chain that a run is a stage of, first to last, or [] if it is none."""
    try:
        request = request_in(run.absolute().parent)
    except UserError:  # a run can be shown beside a damaged file
        return []
    return [run.parent / name for name in request.stages] if request and run.absolute().name in request.stages else []


def described(run: Path) -> dict[str, Any]:
    """Return what is known of one stage: its run directory, state, epochs, and best top-1 in %."""
    if not run.is_dir():
        return {"stage": run.name, "run": str(run), "state": "new", "epoch": None, "epochs": None, "best_top1": None}
    found = reader.read(run, [TOP1])
    best = outcome(found, TOP1)
    epoch = found.last.epoch if found.last else None
    epochs = found.config.get("training.epochs")
    return {
        **{"stage": run.name, "run": str(run), "state": found.state, "epoch": epoch, "epochs": epochs},
        "best_top1": best.best.value if best else None,
    }


def request_in(folder: Path) -> Request | None:
    """Return what was asked for in the folder of a chain, or None if it holds none. Raises UserError if the file is damaged."""
    path = folder / FILE
    try:
        request = Request.model_validate_json(path.read_bytes())
        if len(set(request.stages)) < len(request.stages) or not all(_is_name(name) for name in request.stages):
            raise ValueError
        return request
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError, ValueError) as error:
        if isinstance(error, OSError) and is_passing(error):
            raise unavailable(path, error) from None
        raise UserError(f"{path} is damaged; remove it, and give the command of the recipe again, which writes it anew.") from None


def _is_name(name: str) -> bool:
    return Path(name).name == name and len(name) <= 100 and name.isprintable()
