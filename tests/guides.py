"""Reads the guides (all Markdown files of the project): their commands, the files they name, and their links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer
import yaml

from data_pipelines.errors import UserError
from launch.cli import app
from tdformer.config.yaml_io import load_config
from tests.conftest import REPOSITORY

COMMAND_LINE = typer.main.get_command(app)
FOLDERS = ("configs", "data_pipelines", "launch", "tdformer", "tests")
DEMO = REPOSITORY / "configs" / "demo.yaml"
README_LINES = 150
USAGE_ERROR = typer.BadParameter.__mro__[1]
"""The base of all errors that typer raises for arguments. It has no public name in typer."""


@dataclass(frozen=True)
class Command:
    """One command in a bash block of a guide."""

    line: str
    """The command as the guide prints it, its continued lines joined."""
    words: tuple[str, ...]
    """The words that a shell makes of it, without comments and redirections."""

    @property
    def arguments(self) -> tuple[str, ...] | None:
        """The arguments of `tdformer`, also under torchrun and DeepSpeed's launcher. None for any other command."""
        if Path(self.words[0]).name == "tdformer":
            return self.words[1:]
        if "tdformer" in self.words and {"--no-python", "--no_python"} & {*self.words}:
            return self.words[self.words.index("tdformer") + 1 :]
        for flag, module in zip(self.words, self.words[1:], strict=False):
            if flag in ("-m", "--module") and module == "launch":
                return self.words[self.words.index(flag) + 2 :]
        return None


def guides() -> list[Path]:
    """All Markdown files of the project, README.md first."""
    inner = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.md"))
    return [REPOSITORY / "README.md", *sorted(path for path in REPOSITORY.glob("*.md") if path.name != "README.md"), *inner]


def commands(text: str) -> Iterator[Command]:
    """The commands in the bash blocks of a guide, in their order."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            ends = [index for index, word in enumerate(words) if not word.strip("|<>;&()")]
            if words := words[: ends[0]] if ends else words:
                yield Command(line, tuple(words))


def problems_of_command(command: Command) -> list[str]:
    """What is wrong with a command, found without running it."""
    files = [word for word in command.words if word.startswith(("configs/", "launch/"))]
    problems = [f"there is no {file}" for file in files if not (REPOSITORY / file).exists()]
    if command.arguments is not None:
        problems += _problems_of_arguments(command.arguments)
    return problems


def _problems_of_arguments(arguments: tuple[str, ...]) -> list[str]:
    name, command, rest = "tdformer", COMMAND_LINE, list(arguments)
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return [f"{name} has no command {rest[:1]}"]
        name, command = rest[0], command.commands[rest.pop(0)]
    try:
        parameters = command.make_context(name, rest).params
    except USAGE_ERROR as error:
        return [error.format_message()]
    return _problems_of_overrides(parameters)


def _problems_of_overrides(parameters: dict) -> list[str]:
    """A configuration file is loaded with the overrides. The configuration of a run that is only named is that of the demo."""
    target = REPOSITORY / str(parameters.get("config") or parameters.get("target") or "")
    overrides = list(parameters.get("overrides") or [])
    for sweep in parameters.get("sweep") or []:
        key, _, values = sweep.partition("=")
        overrides.append(f"{key}={yaml.safe_load(values)[0]}")
    try:
        load_config(target if target.is_file() else DEMO, overrides)
    except UserError as error:
        return [str(error)]
    return []


def problems_of_length(text: str) -> list[str]:
    """README.md is one screen and a map: more belongs into the guides."""
    lines = len(text.splitlines())
    return [] if lines <= README_LINES else [f"README.md has {lines} lines, and may have {README_LINES}"]


def problems_of_text(guide: Path, text: str) -> list[str]:
    """Links and pictures that lead nowhere, and files of the project and verbs of `tdformer` that do not exist."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    problems = [f"the link {link} leads nowhere" for link in links if not _leads_somewhere(guide, link)]
    for name, file in re.findall(r"`(\w+)(?:\(\))?`\s+(?:in|of)\s+`([\w./]+\.py)`", prose):
        if (REPOSITORY / file).exists() and not re.search(rf"\b{name}\b", (REPOSITORY / file).read_text()):
            problems.append(f"there is no `{name}` in {file}")
    for code in re.findall(r"`([^`\n]+)`", prose):
        if code.startswith("tdformer ") and not _verbs_exist(code.split()[1:]):
            problems.append(f"there is no command `{code}`")
        if _is_of_the_project(code) and not any((folder / code).exists() for folder in (REPOSITORY, guide.parent)):
            problems.append(f"there is no file `{code}`")
    return problems


def _is_of_the_project(code: str) -> bool:
    return re.fullmatch(r"[\w./-]+", code) is not None and (code.endswith(".py") or code.startswith(tuple(f"{name}/" for name in FOLDERS)))


def _verbs_exist(words: list[str]) -> bool:
    command = COMMAND_LINE
    while hasattr(command, "commands") and words:
        if words[0] not in command.commands:
            return False
        command, words = command.commands[words[0]], words[1:]
    return True


def _leads_somewhere(guide: Path, link: str) -> bool:
    if re.match(r"https?://", link):
        return True
    name, _, anchor = link.partition("#")
    target = (guide.parent / name).resolve() if name else guide
    return target.exists() and (not anchor or anchor in _anchors(target.read_text()))


def _anchors(text: str) -> set[str]:
    """GitHub's names of the headings: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
