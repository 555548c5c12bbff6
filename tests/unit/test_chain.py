"""Chains of trainings: which files they are, where their runs lie, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from tdformer.config import shipped
from tdformer.config.chain import chain_of
from tdformer.config.yaml_io import load_config
from tdformer.runs.chain import chain_around, make_chain, stages_in
from tests.unit.test_shipped_configs import BELOW, written

ABOVE = "base: first.yaml\nafter: {after}.yaml\nname: {name}\ndata: {{ image_size: {size} }}\n"


@pytest.fixture
def last(tmp_path: Path) -> Path:
    written(
        tmp_path,
        first=BELOW.replace("below", "first"),
        second=ABOVE.format(after="first", name="second", size=288),
        run=ABOVE.format(after="second", name="third", size=384),
    )
    return tmp_path / "run.yaml"


def test_a_shipped_chain_is_the_one_of_the_paper() -> None:
    names = [shipped.path_of(f"imagenet/{name}").resolve() for name in ("qkformer_hst10_768_224", "tdformer_hst10_768_224")]
    assert [file.resolve() for file in chain_of(Path("imagenet/tdformer_hst10_768_224"))] == names
    assert [load_config(file).data.image_size for file in chain_of(Path("imagenet/tdformer_hst10_768_384"))] == [224, 224, 288, 384]
    several = [load_config(file) for file in chain_of(Path("imagenet/tdformer_hst10_768_384_64gpu"))]
    assert all(config.training.accumulation(64) == 1 for config in several)


def test_each_stage_starts_from_the_best_weights_of_the_one_before(last: Path, tmp_path: Path) -> None:
    overrides = ["training.epochs=3", f"output={tmp_path / 'out'}", "init=weights"]
    chain = make_chain(last, overrides, None, None)
    folder = tmp_path / "out" / "third-recipe"
    assert chain.folder == folder
    assert [stage.run_dir.path for stage in chain.stages] == [folder / name for name in ("first", "second", "third")]
    inits = [Path("weights"), folder / "first" / "checkpoints" / "best", folder / "second" / "checkpoints" / "best"]
    assert [stage.config.init for stage in chain.stages] == inits
    assert [stage.config.data.image_size for stage in chain.stages] == [224, 288, 384]
    assert {stage.config.training.epochs for stage in chain.stages} == {3}
    assert {stage.config.output for stage in chain.stages} == {folder}
    assert all(load_config(stage.file, stage.overrides) == stage.config for stage in chain.stages)


def test_a_chain_can_begin_later_and_lie_elsewhere(last: Path, tmp_path: Path) -> None:
    chain = make_chain(last, [], "second", tmp_path / "a folder: here")
    assert [(stage.name, stage.config.init) for stage in chain.stages] == [
        ("second", None),
        ("third", tmp_path / "a folder: here" / "second" / "checkpoints" / "best"),
    ]
    chain.claim()
    stages = [tmp_path / "a folder: here" / name for name in ("second", "third")]
    assert stages_in(chain.folder) == stages
    assert chain_around(stages[0]) == stages
    assert chain_around(tmp_path / "a folder: here" / "other") == []
    assert stages_in(tmp_path) is None
    with pytest.raises(UserError, match=r"holds a recipe of other stages \(second, third\); give the same --first as before"):
        make_chain(last, [], None, tmp_path / "a folder: here").check()
    (chain.folder / "recipe.json").write_text("{")
    with pytest.raises(UserError, match=r"recipe\.json is damaged; remove it"):
        chain.check()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ABOVE.format(after="run", name="third", size=384), "after is run.yaml, which itself comes after this one; name an earlier"),
        (ABOVE.format(after="loop", name="third", size=384), "after is run.yaml, which itself comes after this one; name an earlier"),
        (ABOVE.format(after="nowhere", name="third", size=384), r"nowhere\.yaml cannot be read: No such file or directory"),
        ("base: first.yaml\nafter: [first.yaml]\n", r"after must be the name of a YAML file, from the folder of this one, got \['first"),
        (ABOVE.format(after="first", name="first", size=384), "two stages of .* have the name first; give each file a name of its own"),
    ],
)
def test_a_chain_that_cannot_be_followed_is_told(last: Path, text: str, sentence: str) -> None:
    (last.parent / "loop.yaml").write_text(ABOVE.format(after="run", name="loop", size=288))
    last.write_text(text)
    with pytest.raises(UserError, match=sentence):
        make_chain(last, [], None, None)


def test_what_would_mix_stages_up_is_refused(last: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the stages of a recipe have names of their own; leave out name=…"):
        make_chain(last, ["name=mine"], None, None)
    with pytest.raises(UserError, match=r"the recipe has no stage secnd; did you mean second\?; its stages are first, second, run"):
        make_chain(last, [], "secnd", None)
    chain = make_chain(last, [f"output={tmp_path / 'out'}"], None, None)
    run = chain.stages[1].run_dir
    run.path.mkdir(parents=True)
    run.config.write_text(json.dumps(chain.stages[1].config.model_dump(mode="json")))
    chain.check()
    with pytest.raises(UserError, match=r"second holds a run of another configuration; .*training\.epochs: 200 -> 5"):
        make_chain(last, [f"output={tmp_path / 'out'}", "training.epochs=5"], None, None).check()
