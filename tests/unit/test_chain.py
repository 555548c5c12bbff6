"""Chains of trainings: which files they are, where their runs lie, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from tdformer.config import shipped
from tdformer.config.chain import chain_of
from tdformer.config.yaml_io import dump_config, load_config
from tdformer.runs.chain import Stage, chain_around, make_chain, request_in
from tests.unit.test_shipped_configs import BELOW, written

ABOVE = "base: first.yaml\nafter: {after}.yaml\nname: {name}\ndata: {{ image_size: {size} }}\n"
WHOLE = '{"target": "a.yaml", "overrides": [], "first": null, "stages": ["a"]}'


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
    folder = tmp_path / "a folder: 😀"
    chain = make_chain(last, [], "second", folder)
    assert [(stage.name, stage.config.init) for stage in chain.stages] == [
        ("second", None),
        ("third", folder / "second" / "checkpoints" / "best"),
    ]
    chain.claim()
    assert chain_around(folder / "second") == [folder / "second", folder / "third"]
    assert chain_around(folder / "other") == []
    assert request_in(tmp_path) is None
    assert make_chain(folder, [], None, None) == chain
    make_chain(last, [], None, folder).check()  # nothing of the other stages is there yet
    (folder / "second").mkdir()
    with pytest.raises(UserError, match=r"holds a recipe of other stages \(second, third\); give the same --first as before"):
        make_chain(last, [], None, folder).check()
    with pytest.raises(UserError, match="goes on as it was begun; leave out overrides, --first and --folder"):
        make_chain(folder, ["seed=1"], None, None)
    with pytest.raises(UserError, match=r"is no folder of a recipe: it has no recipe\.json"):
        make_chain(tmp_path, [], None, None)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", "null", '{"stages": 5}', "[" * 100_000, "\udcff"),
        *(WHOLE.replace('["a"]', names) for names in ("[]", '"ab"', '["../x"]', '["a", "a"]', '["a\\u0000"]', f'["{"a" * 300}"]', "[1]")),
        WHOLE.replace("first", "other"),
    ],
)
def test_a_damaged_recipe_file_is_named_and_hides_no_run(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"recipe\.json is damaged; remove it, and give the command of the recipe again"):
        request_in(tmp_path)
    assert chain_around(tmp_path / "run") == []


def test_a_folder_in_its_place_is_damage_too(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").mkdir()
    with pytest.raises(UserError, match=r"recipe\.json is damaged"):
        request_in(tmp_path)
    (tmp_path / "file").touch()
    assert request_in(tmp_path / "file") is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ABOVE.format(after="run", name="third", size=384), "after is run.yaml, which itself comes after this one; name an earlier"),
        (ABOVE.format(after="loop", name="third", size=384), "after is run.yaml, which itself comes after this one; name an earlier"),
        (ABOVE.format(after="nowhere", name="third", size=384), r"run\.yaml: its after .*nowhere\.yaml cannot be read \(No such file"),
        ("base: first.yaml\nafter: [first.yaml]\n", r"after must be the name of a YAML file, from the folder of this one, got \['first"),
        ("base: first.yaml\nafter:\n", r"after must be the name of a YAML file, .*got None"),
        (ABOVE.format(after="first", name="first", size=384), "two stages of .* have the name first; give each file a name of its own"),
        (ABOVE.format(after="first", name="recipe.json", size=384), r"a stage has the name recipe\.json, which is that of a file"),
    ],
)
def test_a_chain_that_cannot_be_followed_is_told(last: Path, text: str, sentence: str) -> None:
    (last.parent / "loop.yaml").write_text(ABOVE.format(after="run", name="loop", size=288))
    last.write_text(text)
    with pytest.raises(UserError, match=sentence):
        make_chain(last, [], None, last.parent / "out").check()


def test_a_shipped_configuration_can_come_before(last: Path) -> None:
    last.write_text(last.read_text().replace("second.yaml", "imagenet/qkformer_hst10_768_224"))
    assert [stage.name for stage in make_chain(last, [], None, None).stages] == ["qkformer_hst10_768_224", "third"]


def test_what_would_mix_stages_up_is_refused(last: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the stages of a recipe have names of their own; leave out name=…"):
        make_chain(last, ["name=mine"], None, None)
    with pytest.raises(UserError, match=r"the recipe has no stage secnd, its stages are first, second, run; did you mean second\?"):
        make_chain(last, [], "secnd", None)
    folder = tmp_path / "out"
    chain = make_chain(last, [], None, folder)
    begun(chain.stages[1])
    begun(chain.stages[0])
    with pytest.raises(UserError, match=r"first holds stage first with another configuration; .*training\.epochs: 200 -> 5"):
        make_chain(last, ["training.epochs=5"], None, folder).check()
    with pytest.raises(UserError, match=r"stage second has begun from the weights of .*first, which is gone, or not finished; bring that"):
        chain.check()


def test_a_folder_may_be_moved_between_stages(last: Path, tmp_path: Path) -> None:
    chain = make_chain(last, [], "second", tmp_path / "out")
    begun(chain.stages[1])
    chain.folder.rename(tmp_path / "moved")
    moved = make_chain(last, [], "second", tmp_path / "moved")
    assert moved.stages[1].config.init == chain.stages[1].config.init
    assert moved.stages[1].run_dir.path == tmp_path / "moved" / "third"


@pytest.mark.parametrize(
    ("planted", "sentence"),
    [
        ("out", "out is a file; give another --folder"),
        ("out/first", "out/first is a file, where the run of stage first would lie"),
        ("out/config.yaml", "out is a run directory; give another --folder"),
        ("out/manifest.json", r"out holds other things than a recipe \(manifest\.json\)"),
        ("out/second/notes.txt", "second is not empty and not a run directory"),
    ],
)
def test_a_folder_that_is_not_free_is_told(planted: str, sentence: str, last: Path, tmp_path: Path) -> None:
    chain = make_chain(last, [], None, tmp_path / "out")
    (tmp_path / planted).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / planted).touch()
    with pytest.raises(UserError, match=sentence):
        chain.check()


def test_what_is_not_on_this_machine_is_told_before_anything_is_trained(last: Path, tmp_path: Path) -> None:
    chain = make_chain(last, ["init=nowhere"], None, tmp_path / "out")
    assert chain.notes() == [
        "data.train is a, which is not on this machine: the data was not checked",
        "stage first starts from nowhere, which is not on this machine",
    ]
    with pytest.raises(UserError, match=r"stage first starts from nowhere, which is not there; make it first, see the head of first\.yaml"):
        chain.claim()
    assert not chain.folder.exists()


def begun(stage: Stage) -> None:
    """Leave behind what a stage has after its first checkpoint."""
    stage.run_dir.checkpoints.mkdir(parents=True)
    stage.run_dir.config.write_text(dump_config(stage.config))
    stage.run_dir.latest.write_text("step-00000001\n")
