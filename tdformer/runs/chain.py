"""Chain: trainings that follow each other, each from the best weights of the one before, in one folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage.files import replace_file
from data_pipelines.storage.passing_trouble import reading_own
from tdformer.config import RunConfig
from tdformer.config.chain import chain_of
from tdformer.config.yaml_io import ConfigError, did_you_mean, load_config, parse_override
from tdformer.rundir import creation
from tdformer.rundir.run_dir import RunDir
from tdformer.runs import reader
from tdformer.runs.comparison import outcome
from tdformer.runs.states import State

FILE = "recipe.json"
TOP1 = "val/top1"


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
    def state(self) -> State:
        return reader.read(self.run_dir.path).state if self.run_dir.path.is_dir() else "new"


@dataclass(frozen=True)
class Chain:
    """The stages of a recipe, in the order of their training. Each but the first starts from the best checkpoint of the one before."""

    folder: Path
    stages: Sequence[Stage]

    def check(self) -> None:
        """Raise UserError unless the folder is free for this chain, or holds it with the same configurations."""
        if (names := _names_in(self.folder)) is not None and names != [stage.name for stage in self.stages]:
            raise UserError(
                f"{self.folder} holds a recipe of other stages ({', '.join(names)}); give the same --first as before, or another --folder."
            )
        for stage in self.stages:
            creation.check_fits(stage.run_dir, stage.config)

    def claim(self) -> None:
        """Make the folder the folder of this chain. Raises UserError if it cannot be written."""
        self.check()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"folder {self.folder} cannot be made ({error.strerror}); choose another --folder.") from None
        text = json.dumps({"stages": [stage.name for stage in self.stages]}) + "\n"
        replace_file(self.folder / FILE, lambda partial: partial.write_text(text))


def make_chain(target: Path, overrides: Sequence[str], first: str | None, folder: Path | None) -> Chain:
    """Return the chain that a configuration is the last of.

    overrides: they change every stage; `init` changes the first one alone. first: the name of the stage to begin with, from its own
    `init`. folder: None is <output>/<name of the last stage>-recipe. Raises UserError.
    """
    given = {parse_override(override)[0]: override for override in overrides}
    if "name" in given:
        raise UserError("the stages of a recipe have names of their own; leave out name=…, and give --folder for another folder.")
    of_first = [given["init"]] if "init" in given else []
    of_all = [override for override in overrides if override not in of_first]
    files = _from(first, chain_of(target))
    named = [load_config(file, of_all) for file in files]
    folder = folder or named[-1].output / f"{named[-1].name}-recipe"
    if twice := sorted({config.name for config in named if [other.name for other in named].count(config.name) > 1}):
        raise ConfigError(f"two stages of {target} have the name {twice[0]}; give each file a name of its own")
    stages: list[Stage] = []
    for file, config in zip(files, named, strict=True):
        own = [override for override in of_all if override != given.get("output")] + [f"output={json.dumps(str(folder))}"]
        own += [f"init={json.dumps(str(stages[-1].run_dir.best))}"] if stages else of_first
        stages.append(Stage(file, load_config(file, own), own, RunDir(folder / config.name)))
    return Chain(folder, stages)


def _from(first: str | None, files: list[Path]) -> list[Path]:
    if first is None:
        return files
    names = [file.stem for file in files]
    wanted = Path(first).stem
    if wanted not in names:
        raise UserError(f"the recipe has no stage {first}{did_you_mean(wanted, names)}; its stages are {', '.join(names)}.")
    return files[names.index(wanted) :]


def chain_around(run: Path) -> list[Path]:
    """Return the run directories of the chain that a run is a stage of, first to last, or [] if it is none."""
    names = _names_in(run.resolve().parent) or []
    return [run.parent / name for name in names] if run.resolve().name in names else []


def stages_in(folder: Path) -> list[Path] | None:
    """Return the run directories of the chain in a folder, first to last, or None if it holds none."""
    names = _names_in(folder)
    return None if names is None else [folder / name for name in names]


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


def _names_in(folder: Path) -> list[str] | None:
    path = folder / FILE
    try:
        with reading_own(path):
            names = json.loads(path.read_text())["stages"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; remove it, and give the command of the recipe again, which writes it anew.") from None
    return [str(name) for name in names]
