"""What the guides say exists: commands, options, keys, files, links. Nothing is run here; test_newcomer.py does that."""

from __future__ import annotations

import pytest

from tests.conftest import REPOSITORY
from tests.guides import README_LINES, commands, guides, problems_of_command, problems_of_length, problems_of_text

GUIDE = REPOSITORY / "README.md"
names = [str(path.relative_to(REPOSITORY)) for path in guides()]


def parsed(line: str) -> list[str]:
    (command,) = commands(f"```bash\n{line}\n```\n")
    return problems_of_command(command)


@pytest.mark.parametrize("name", names)
def test_every_command_can_be_given(name: str) -> None:
    found = {command.line: problems_of_command(command) for command in commands((REPOSITORY / name).read_text())}
    assert not {line: problems for line, problems in found.items() if problems}


@pytest.mark.parametrize("name", names)
def test_what_the_text_names_exists(name: str) -> None:
    assert problems_of_text(REPOSITORY / name, (REPOSITORY / name).read_text()) == []


def test_every_room_has_a_guide_that_opens_with_a_command() -> None:
    rooms = {"configs", "data_pipelines", "launch", "tests", *(f"tdformer/{room}" for room in ("bench", "estimate", "models"))}
    rooms |= {f"tdformer/{room}" for room in ("runs", "tracking", "training")}
    assert {f"{room}/README.md" for room in rooms} <= set(names)
    for room in rooms:
        _, opening, _ = (REPOSITORY / room / "README.md").read_text().split("\n\n", 2)
        assert opening.startswith("```bash\n"), room


def test_readme_fits_one_screen_and_a_map() -> None:
    assert problems_of_length(GUIDE.read_text()) == []
    assert problems_of_length("line\n" * (README_LINES + 1)) != []


def test_commands_are_read_as_a_shell_reads_them() -> None:
    text = "```bash\ntdformer plan a.yaml \\\n  x='[1, 2]'   # a comment\n\ntdformer bench step > out.json\nls\n```\n"
    text += "```\ntdformer in a block of another kind\n```\n"
    assert [command.words for command in commands(text)] == [
        ("tdformer", "plan", "a.yaml", "x=[1, 2]"),
        ("tdformer", "bench", "step"),
        ("ls",),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "tdformer train configs/demo.yaml --processes 2",
        ".venv/bin/tdformer submit configs/demo.yaml --sweep 'seed=[0, 1]'",
        "torchrun --nproc-per-node 2 -m launch train configs/demo.yaml training.epochs=1",
        "torchrun --nproc-per-node 2 --no-python tdformer train configs/demo.yaml training.epochs=1",
        "sbatch launch/train.sbatch configs/demo.yaml runs/first",
        "anything --else",
    ],
)
def test_a_good_command_has_no_problems(line: str) -> None:
    assert parsed(line) == []


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("tdformer trian configs/demo.yaml", "trian"),
        ("tdformer data prepair mnist data/mnist", "prepair"),
        ("tdformer train configs/demo.yaml --processors 2", "--processors"),
        ("tdformer train", "CONFIG|RUN_DIR"),
        ("tdformer data prepare mnist", "out"),
        ("tdformer train configs/demo.yaml --processes many", "--processes"),
        ("tdformer train configs/gone.yaml", "configs/gone.yaml"),
        ("sbatch launch/gone.sbatch CONFIG RUN_DIR", "launch/gone.sbatch"),
        ("tdformer train configs/demo.yaml training.epoch=2", "epochs"),
        ("tdformer train CONFIG training.epochs=many", "many"),
        ("tdformer submit configs/demo.yaml --sweep 'seeds=[0, 1]'", "seed"),
        ("torchrun --nproc-per-node 2 -m launch train configs/demo.yaml --wrong", "--wrong"),
        ("deepspeed --hostfile hosts --module launch train CONFIG --wrong", "--wrong"),
        ("torchrun --nproc-per-node 2 --no-python tdformer train configs/demo.yaml --wrong", "--wrong"),
        ("deepspeed --hostfile hosts --no_python tdformer train CONFIG --wrong", "--wrong"),
    ],
)
def test_a_wrong_command_is_found(line: str, word: str) -> None:
    assert word.lower() in " ".join(parsed(line)).lower()


@pytest.mark.parametrize(
    "text",
    [
        "[gone](gone.md)",
        "![gone](.github/gone.png)",
        "[gone](CONTRIBUTING.md#no-such-heading)",
        "see `tdformer/gone.py`",
        "see `gone.py`",
        "see `Gone` in `tdformer/evaluation.py`",
        "call `tdformer runs lst`",
    ],
)
def test_a_name_that_leads_nowhere_is_found(text: str) -> None:
    assert len(problems_of_text(GUIDE, text)) == 1


def test_names_that_lead_somewhere_are_no_problem() -> None:
    text = "[a](LICENSE) ![b](.github/mlflow.png) [c](CONTRIBUTING.md#words-and-texts) [d](https://example.org/gone) "
    text += "`Evaluation` of `tdformer/evaluation.py` `tdformer runs list` `runs/demo-001`"
    assert problems_of_text(GUIDE, text) == []
