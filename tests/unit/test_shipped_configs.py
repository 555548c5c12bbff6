"""The configurations that come with the program: each is the network of its name, and opens with what it aims at and its commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from tdformer.config import shipped
from tdformer.config.yaml_io import load_config
from tdformer.models.registry import MODELS
from tdformer.reference_curves.curve import names
from tests.conftest import REPOSITORY, tdformer

CONFIGS = REPOSITORY / "configs"
FOLDERS = ("imagenet", "cifar10", "cifar100", "cifar10_dvs", "dvs128")
RECIPES = {str(path.relative_to(CONFIGS)): path for folder in FOLDERS for path in sorted((CONFIGS / folder).glob("*.yaml"))}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_network_of_its_name(name: str) -> None:
    """The file is named after its network, then its image size where there are several, and its GPUs where they are on several nodes."""
    config, gpus = load_config(RECIPES[name]), re.search(r"_(\d+)gpu$", RECIPES[name].stem)
    stem = re.sub(r"_\d+gpu$", "", RECIPES[name].stem)
    candidates = (f"{stem}_{RECIPES[name].parent.name.replace('_', '')}", stem, re.sub(r"_(224|288|384)$", "", stem))
    expected = next(MODELS[network] for network in candidates if network in MODELS).config
    assert config.model.backbone == expected.backbone
    assert config.model.time_steps == expected.time_steps
    assert (config.model.feedback is None) is (expected.feedback is None)
    if name.startswith("imagenet/"):
        assert stem.endswith(f"_{config.data.image_size}")
        assert config.training.accumulation(int(gpus[1]) if gpus else 8)
    assert config.training.reference is None or config.training.reference in names()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_its_aim_its_cost_and_its_commands(name: str) -> None:
    head = RECIPES[name].read_text().split("\nname:")[0]
    for line in (
        r"aims at +(\d\d\.\d\d % top-1|no published number that we know of)",
        f"check +tdformer describe configs/{name}",
        f"run +tdformer (train|submit) configs/{name}",
        "cost +",
    ):
        assert re.search(f"^#   {line}", head, re.MULTILINE), line


# --- by name -------------------------------------------------------------------------------------------------------


def test_a_configuration_is_found_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(shipped.names()) == {"demo", *(name.removesuffix(".yaml") for name in RECIPES)}
    monkeypatch.chdir(tmp_path)
    by_name = load_config(Path("cifar10/tdformer_hst4_384"), ["training.epochs=20"])
    assert by_name == load_config(CONFIGS / "cifar10" / "tdformer_hst4_384.yaml", ["training.epochs=20"])
    (tmp_path / "demo.yaml").write_text(BELOW)
    assert load_config(Path("demo.yaml")).name == "below", "a file of one's own goes first"
    assert load_config(Path("demo")).name == "demo"
    with pytest.raises(UserError, match="cannot be read: No such file or directory; did you mean cifar10/tdformer_hst4_384"):
        load_config(Path("cifar10/tdformer_hst4_348"))


def test_configs_lists_them_for_people_and_programs() -> None:
    rows = {row["name"]: row for row in json.loads(tdformer("configs", "--json").stdout)["configs"]}
    assert rows["imagenet/tdformer_hst10_768_384"]["aims_at_top1"] == 86.83
    assert rows["cifar100/qkformer_hst4_384"]["reference"] == "cifar100_qkformer_hst4_384"
    assert rows["cifar10/sdt2_256"]["aims_at_top1"] is None
    shown = tdformer("configs", "cifar10/*")
    assert "96.51" in shown.stdout
    assert "imagenet" not in shown.stdout
    nothing = tdformer("configs", "cifar1000")
    assert nothing.returncode == 2
    assert "no configuration's name is like 'cifar1000'" in nothing.stderr


# --- a configuration on top of another one -------------------------------------------------------------------------


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "run.yaml"


BELOW = """
name: below
data: { train: a, val: b, augment: { erase: 0.5 } }
model: { feedback: null, segments: 1, backbone: { depths: [1, 1, 1] } }
"""


def test_a_file_changes_the_keys_of_its_base(tmp_path: Path) -> None:
    above = "base: below.yaml\nname: run\nmodel: { segments: 2, feedback: {}, backbone: { embed_dims: 96 } }\ndata: { val: c }\n"
    config = load_config(written(tmp_path, below=BELOW, run=above), ["data.val=d"])
    assert (config.name, config.data.train, config.data.val, config.data.augment.erase) == ("run", "a", "d", 0.5)
    assert (config.model.segments, config.model.backbone.embed_dims, config.model.backbone.depths) == (2, 96, (1, 1, 1))
    assert config.model.feedback is not None


@pytest.mark.parametrize(
    ("above", "sentence"),
    [
        ("base: run.yaml\nname: run\n", "base is run.yaml, the file itself; name another one, or leave it out"),
        ("base: nowhere.yaml\nname: run\n", r"its base .*nowhere\.yaml cannot be read \(No such file or directory\)"),
        ("base: loop.yaml\nname: run\n", r"its base .*loop\.yaml cannot be read \(Too many levels of symbolic links\)"),
        ('base: "a\\0b.yaml"\nname: run\n', r"its base .* cannot be read \(.*null byte\)"),
        ("base: middle.yaml\nname: run\n", r"has a base itself \(below\.yaml\); only one is followed, so name that"),
        ("base: [below.yaml]\nname: run\n", r"base must be the name of a YAML file, from the folder of this one, got \['below\.yaml'\]"),
        ("base:\nname: run\n", "base must be the name of a YAML file, .* got None"),
    ],
)
def test_a_base_that_cannot_be_followed_is_told(above: str, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path, below=BELOW, middle="base: below.yaml\nname: middle\n", run=above)
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(UserError, match=sentence):
        load_config(path)
