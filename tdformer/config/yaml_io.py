"""Reads a RunConfig from YAML and `section.key=value` overrides, and writes the resolved one.

Errors name the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from data_pipelines.errors import UserError
from data_pipelines.storage.passing_trouble import is_passing, unavailable
from tdformer.config import RunConfig
from tdformer.config.shipped import find_config
from tdformer.config.shipped import names as shipped_names

UNREADABLE = (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""Errors that PyYAML raises for text that is not valid YAML: its own error, or an error of its constructors (a 45th of the month)."""


BASE, AFTER = "base", "after"
"""The keys of a file that name another one: the one whose keys it changes, and the one whose best weights it starts from."""

Checked = TypeVar("Checked", bound=BaseModel)


class ConfigError(UserError):
    """Says that a configuration cannot be run, and why."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read one YAML file on top of its base, apply `section.key=value` overrides (values are YAML), and check everything.

    path: a file, or the name of a configuration that comes with the program (`tdformer configs`).
    """
    path = find_config(path)
    tree = read_with_base(path)
    tree.pop(AFTER, None)  # it says what `tdformer recipe` trains before, and nothing about this run
    return with_overrides(tree, overrides, f"configuration {path} cannot be run")


def with_overrides(tree: dict[str, Any], overrides: Sequence[str], what: str) -> RunConfig:
    """Return the configuration of a tree of plain values with overrides. Raises ConfigError, which `what` begins."""
    keys = set[str]()
    for override in overrides:
        key, _ = parse_override(override)
        if key in keys:
            raise ConfigError(f"override {override!r}: {key} is given twice")
        keys.add(key)
        _apply(tree, override)
    return checked(RunConfig, tree, what)


def read_with_base(path: Path) -> dict[str, Any]:
    """Return the tree of a file. If it names another file as its `base`, that file's keys come first, and its own replace them."""
    tree = read_yaml(path)
    if BASE not in tree:
        return tree
    name = tree.pop(BASE)
    base = named_file(path, BASE, name)
    if base.samefile(path):
        raise ConfigError(f"configuration {path}: {BASE} is {name}, the file itself; name another one, or leave it out")
    below = read_yaml(base)
    if BASE in below:
        raise ConfigError(
            f"configuration {path}: its {BASE} {base} has a {BASE} itself ({below[BASE]}); only one is followed, so name that"
        )
    return _merged(below, tree)


def named_file(path: Path, key: str, name: object) -> Path:
    """Return the file that a file names under a key: from its own folder, or one that comes with the program. Raises ConfigError."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"configuration {path}: {key} must be the name of a YAML file, from the folder of this one, got {name!r}")
    try:
        beside = path.parent / name
        if beside.is_file() or not (found := find_config(Path(name))).is_file():
            beside.stat()  # says what is wrong, if anything is
            return beside
        return found
    except (OSError, ValueError) as error:  # a null byte is a ValueError
        if is_passing(error):
            raise unavailable(f"configuration {path.parent / name}", error) from None
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"configuration {path}: its {key} {path.parent / name!s:.200} cannot be read ({reason})") from None


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return both trees as one. Sections are joined key by key; any other value of `above` replaces that of `below`."""
    both = {key: _merged(below[key], above[key]) for key in below.keys() & above.keys() if _are_sections(below[key], above[key])}
    return {**below, **above, **both}


def _are_sections(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def dump_config(config: RunConfig) -> str:
    """Return the resolved configuration as YAML with every default written out. load_config reads it back to an equal RunConfig."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the tree in a YAML file. Raises ConfigError if there is none, or if it holds no mapping.

    Raises UnavailableError if it cannot be read now.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        if is_passing(error, was_there=not isinstance(error, FileNotFoundError)):
            raise unavailable(f"configuration {path}", error) from None
        name = str(path).removesuffix(".yaml")
        hint = did_you_mean(name, shipped_names()) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}{hint}") from None
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"configuration {path} is not valid YAML{place}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration {path} must hold sections (a YAML mapping), it holds {type(tree).__name__}")
    return tree


def parse_override(override: str) -> tuple[str, Any]:
    """Split `section.key=value` into the dotted key and the value, which is read as YAML. Raises ConfigError."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        return key, yaml.load(text, Loader=_Loader)
    except UNREADABLE:
        raise ConfigError(f"override {override!r}: {text!r} is not a valid YAML value") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, value = parse_override(override)
    *sections, leaf = key.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {section} is a value, not a section")
    tree[leaf] = value


def checked(section: type[Checked], tree: dict[str, Any], what: str) -> Checked:
    """Return the section that a tree of plain values describes. Raises ConfigError: "<what>:" and one line for each problem."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {_sentence(problem, section)}" for problem in error.errors(include_url=False)]
        raise ConfigError(f"{what}:\n" + "\n".join(lines)) from None


def _sentence(problem: Any, root: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{path}: unknown key{_nearest(problem['loc'], root)}"
    if problem["type"] == "missing":
        return f"{path}: this key is required"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable to parse")[0]
    message = (
        message.replace("String should match pattern", "text of the form")
        .replace("valid tuple", "list")
        .replace("valid dictionary", "section (keys and values)")
    )
    if problem["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path + ': ' if path else ''}got {problem['input']!r}, allowed is {message.removeprefix('a ')}"


def _nearest(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """Return a hint for an unknown key: the most similar key, and all keys that are allowed in its place."""
    section: Any = root
    for part in loc[:-1]:
        field = section.model_fields.get(part)
        section = next((kind for kind in _section_types(field.annotation) if kind), None) if field else None
        if section is None:
            return ""
    known = list(section.model_fields)
    return f"{did_you_mean(str(loc[-1]), known)} (allowed: {', '.join(known)})"


def did_you_mean(given: str, known: Iterable[str], count: int = 1) -> str:
    """Return "; did you mean …?" for an unknown name, or "" if no known name is similar."""
    similar = difflib.get_close_matches(given, list(known), n=count)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


def _section_types(annotation: Any) -> list[Any]:
    options = getattr(annotation, "__args__", (annotation,))
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


class _Loader(yaml.SafeLoader):
    """Reads safe YAML with three differences from YAML 1.1.

    2e-5 is a number (YAML 1.1 wants 2.0e-5). 24:00:00 is text (there it is 86400). A key that is given twice is an error.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := {str(key) for key in keys if keys.count(key) > 1}:
            raise yaml.constructor.ConstructorError(None, None, f"the key {min(twice)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_NUMBERS = {
    "int": (r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag.removeprefix(_TAG) not in _NUMBERS]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_pattern, _first) in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(f"^({_pattern})$"), list(_first))
