"""Whatever looks like a sample and is none is listed with its reason, and a class without samples is seen."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from typer.testing import CliRunner

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.manifest import MANIFEST
from data_pipelines.formats.manifest_reader import read_manifest
from data_pipelines.prepare.class_counts import count_classes
from data_pipelines.prepare.options import PrepareOptions
from data_pipelines.prepare.prepare_dataset import PrepareResult, prepare_dataset, preview_preparation
from data_pipelines.prepare.verify_dataset import verify_dataset
from data_pipelines.sources.base import Source
from data_pipelines.sources.folders import ImageFolderSource
from data_pipelines.sources.layouts import open_splits
from data_pipelines.sources.tars import NestedTarSource, TarPerClassSource
from launch.cli import app
from tests.conftest import tdformer, write_config
from tests.distributed.starter import tdformer_from_scratch
from tests.unit.test_sources import PNG, listed, plant, plant_tars, tar_bytes

NFC, NFD = normalize("NFC", "café"), normalize("NFD", "café")


def reasons(source: Source) -> dict[str, str]:
    """The entries that are left out, by their names, and why."""
    return {Path(entry.origin).name: entry.reason for entry in source.left_out}


def plant_splits(root: Path, *classes: str) -> Path:
    """Write four images of each class into train and val."""
    return plant(root, *(f"{split}/{name}/{number}.jpg" for split in ("train", "val") for name in classes for number in range(4)))


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.output + (str(result.exception) if isinstance(result.exception, UserError) else "")


# --- folders -------------------------------------------------------------------------------------------------


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A folder of two classes, with whatever can look like an image and be none."""
    root = plant(
        tmp_path / "zoo", "ant/1.jpg", "ant/2.png", "owl/1.jpg", "owl/more/2.jpg", "owl/more/deep/3.PNG", "ant/odd.jpg/4.jpg", "5.png"
    )
    (root / "owl" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "owl" / "round.png").symlink_to(root / "owl" / "round.png")
    os.mkfifo(root / "owl" / "pipe.png")
    (root / "ant" / "web.webp").write_bytes(b"RIFF")
    (root / "ant" / "._1.jpg").write_bytes(b"\0\5\26\7")
    (root / "ant" / "notes.txt").touch()
    (root / "README").touch()
    (root / ".git").mkdir()
    (root / "bee").symlink_to(root / "no-bees")
    return root


def test_whatever_looks_like_an_image_or_a_class_is_listed_with_its_reason(zoo: Path) -> None:
    source = ImageFolderSource(zoo)
    assert (source.classes, len(source)) == (["ant", "owl"], 3)
    found = reasons(source)
    assert found.keys() == {"odd.jpg", "4.jpg", "web.webp", "2.jpg", "3.PNG", "gone.jpg", "round.png", "pipe.png", "5.png", "bee"}
    assert all("deeper" in found[name] for name in ("2.jpg", "3.PNG", "4.jpg"))
    assert "link to nothing" in found["gone.jpg"]
    assert "link to nothing" in found["bee"]
    assert "leads back to itself" in found["round.png"]
    assert "no plain file" in found["pipe.png"]
    assert "folder" in found["odd.jpg"]
    assert "convert" in found["web.webp"]
    assert "in no class folder" in found["5.png"]
    assert source.ignored_files == 4, "notes, README, .git, and what macOS keeps of 1.jpg"


def test_what_is_left_out_is_in_the_list_and_counted(zoo: Path, tmp_path: Path) -> None:
    assert prepare_dataset(ImageFolderSource(zoo), tmp_path / "set") == PrepareResult(3, left_out=10, resumed=0)
    lines = (tmp_path / "set" / "left_out.tsv").read_text().splitlines()
    assert lines == sorted(lines), "by class"
    assert len(lines) == 10
    assert read_manifest(tmp_path / "set").left_out == 10
    assert verify_dataset(tmp_path / "set") == []
    assert prepare_dataset(ImageFolderSource(zoo), tmp_path / "set").already_there


def test_asked_to_stop_nothing_is_written(zoo: Path, tmp_path: Path) -> None:
    options = PrepareOptions(stop_at_bad=True)
    for action in (preview_preparation, prepare_dataset):
        with pytest.raises(DataError, match=r"zoo/.*: .*; or leave such files out: --on-bad-image leave-out \(9 more such entries\)"):
            action(ImageFolderSource(zoo), tmp_path / "set", options)
    assert not (tmp_path / "set").exists()


def test_ten_broken_links_and_images_one_folder_deeper_stop_the_command(tmp_path: Path) -> None:
    """Before, both were `other files`, and the exit code was 0."""
    for kind in ("links", "deeper"):
        root = plant(
            tmp_path / kind, *(f"{split}/{name}/{n}.jpg" for split in ("train", "val") for name in ("ant", "bee") for n in range(3))
        )
        if kind == "links":
            for number in range(10):
                (root / "train" / "bee" / f"link{number}.jpg").symlink_to("nowhere")
        else:
            plant(root / "train" / "bee" / "more", *(f"{number}.jpg" for number in range(33)))
        code, text = invoke("data", "prepare", root, tmp_path / f"{kind}-out", "--on-bad-image", "stop", "--processes", 1)
        assert code != 0
        assert "train/bee" in text
        code, text = invoke("data", "prepare", root, tmp_path / f"{kind}-out", "--processes", 1)
        assert code == 0, text
        left_out = (tmp_path / f"{kind}-out" / "train" / "left_out.tsv").read_text().splitlines()
        assert len(left_out) == {"links": 10, "deeper": 33}[kind]
        assert f"bad images, with reasons: {tmp_path}/{kind}-out/train/left_out.tsv" in text


def test_a_class_folder_whose_images_are_all_unreadable_says_what_lies_there(tmp_path: Path) -> None:
    root = plant(tmp_path, "ant/1.jpg", "owl/images/1.jpg")
    with pytest.raises(DataError, match=r"class folders owl hold no .*owl/images/1.jpg: it lies deeper"):
        ImageFolderSource(root)


def test_links_to_images_and_folders_are_followed_and_a_round_trip_ends(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", "ant/1.jpg")
    plant(tmp_path / "elsewhere", "2.jpg")
    (root / "ant" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    (root / "bee").symlink_to(tmp_path / "elsewhere")
    (root / "ant" / "up").symlink_to(root)
    source = ImageFolderSource(root)
    assert len(source) == 3
    assert all("deeper" in reason for reason in reasons(source).values())


# --- tars ----------------------------------------------------------------------------------------------------


def tar_with_links() -> bytes:
    import io

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, kind in (("1.png", tarfile.REGTYPE), ("2.png", tarfile.SYMTYPE), ("3.png", tarfile.LNKTYPE), ("4.webp", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "1.png"
            info.size = len(PNG) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(PNG))
    return packed.getvalue()


def test_a_folder_of_tars_lists_what_lies_beside_and_in_them(tmp_path: Path) -> None:
    folder = plant_tars(tmp_path / "tars", {"ant.tar": {"1.png": PNG, "deep/2.png": PNG, "._1.png": b"of macOS"}})
    (folder / "bee.tar").write_bytes(tar_with_links())
    (folder / "._ant.tar").write_bytes(b"\0\5\26\7")
    (folder / "cat.tar").symlink_to("nowhere.tar")
    (folder / "dog.tar").mkdir()
    (folder / "loose.jpg").write_bytes(PNG)
    plant_tars(folder / "more", {"eel.tar": {"1.png": PNG}})
    source = TarPerClassSource(folder)
    assert (source.classes, len(source)) == (["ant", "bee"], 3)
    found = {Path(entry.origin.removeprefix(str(folder))).name: entry.reason for entry in source.left_out}
    assert {name.rpartition(" ")[2] for name in found} == {"2.png", "3.png", "4.webp", "cat.tar", "dog.tar", "loose.jpg", "eel.tar"}
    assert source.ignored_files == 2, "what macOS keeps of ant.tar and of 1.png"


def test_a_tar_of_tars_lists_what_is_no_class_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        import io

        for name, data in (("ant.tar", tar_bytes({"1.png": PNG})), ("loose.png", PNG), ("._ant.tar", b"of macOS"), ("notes.txt", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("bee.tar")
        info.type, info.linkname = tarfile.SYMTYPE, "ant.tar"
        tar.addfile(info)
    source = NestedTarSource(tmp_path / "all.tar")
    assert [(entry.origin.rpartition(" ")[2], entry.reason[:20]) for entry in source.left_out] == [
        ("loose.png", "it lies in no class "),
        ("bee.tar", "it is a link to ant."),
    ]
    assert source.ignored_files == 2


# --- samples per class ---------------------------------------------------------------------------------------


def test_a_class_whose_files_are_all_damaged_is_named_at_the_end(tmp_path: Path) -> None:
    """All of the owls are web pages."""
    root = plant(
        tmp_path / "zoo", *(f"{split}/{name}/{n}.jpg" for split in ("train", "val") for name in ("ant", "bee", "owl") for n in range(4))
    )
    for path in (root / "train" / "owl").iterdir():
        path.write_text("<html>")
    (root / "train" / "ant" / "0.jpg").write_text("<html>")
    code, text = invoke("data", "prepare", root, tmp_path / "out", "--processes", 1)
    assert code == 0, text
    assert f"classes without a sample in {tmp_path}/out/train: owl" in text
    assert "0 to 4, median 3" in text
    assert "4 to 4, median 4" in text
    counts = count_classes(tmp_path / "out" / "train")
    assert counts is not None
    assert (counts.smallest, counts.median, counts.largest, counts.empty) == (0, 3.0, 4, ["owl"])
    code, text = invoke("data", "verify", tmp_path / "out" / "train", "--processes", 1)
    assert code == 0
    assert "classes without a sample: owl" in text


# --- names of macOS, Tiny ImageNet, and places that are not there ------------------------------------------------


@pytest.mark.parametrize("layout", ["folders", "tars", "lists"])
def test_a_class_name_in_another_unicode_form_is_told_apart(tmp_path: Path, layout: str) -> None:
    for split, name in (("train", NFC), ("val", NFD)):
        if layout == "folders":
            plant(tmp_path / split, f"{name}/1.png")
        elif layout == "tars":
            plant_tars(tmp_path / split, {f"{name}.tar": {"1.png": PNG}})
        else:
            plant(tmp_path, f"{split}.png")
            listed(tmp_path / f"{split}.txt", f"{split}.png\t{name}\n")
    with pytest.raises(DataError, match=re.escape(f"{NFD!a}") + ".*" + re.escape(f"{NFC!a}")) as caught:
        open_splits(str(tmp_path), layout)
    assert "Unicode form" in str(caught.value)
    assert "macOS" in str(caught.value)


def test_one_class_in_two_unicode_forms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two Unicode forms"):
        ImageFolderSource(plant(tmp_path, f"{NFC}/1.png", f"{NFD}/2.png"))


def plant_tiny_imagenet(root: Path) -> Path:
    names = ("n01443537", "n01629819")
    plant(root / "train", *(f"{name}/images/{name}_{number}.JPEG" for name in names for number in range(3)))
    for name in names:
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    plant(root / "val" / "images", "val_0.JPEG", "val_1.JPEG")
    (root / "val" / "val_annotations.txt").write_text(f"val_0.JPEG\t{names[1]}\t0\t32\t44\t62\nval_1.JPEG\t{names[0]}\t1\t2\t3\t4\n")
    return root


def test_tiny_imagenet_is_recognised_and_the_command_that_is_given_works(tmp_path: Path) -> None:
    root = plant_tiny_imagenet(tmp_path / "tiny imagenet-200")
    with pytest.raises(DataError, match="is Tiny ImageNet as it is published") as caught:
        open_splits(str(root))
    text = str(caught.value)
    assert "\n" not in text
    subprocess.run(["sh", "-c", text[text.index("(cd ") :]], check=True)
    splits = open_splits(str(root))
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "val": 2}
    assert splits["train"].classes == ["n01443537", "n01629819"]
    assert [splits["val"][number].label for number in range(2)] == [1, 0]


def test_a_folder_that_is_not_there_is_not_asked_to_be_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place, out in (("nowhere", "OUT"), ("data/nowhere", "OUT"), ("data/train", "data"), ("train", "OUT")):
        code, text = invoke("data", "verify", place, "--patience", 0)
        assert code != 0
        assert f"data folder {place} does not exist; check its path and whether its disk is mounted, or write it with: " in text
        assert f"tdformer data prepare SOURCE {out}" in text


@pytest.mark.slow
def test_loader_processes_start_under_a_long_folder_for_temporary_files(run_config: dict[str, Any], tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    run_config["data"]["workers"] = 1
    result = tdformer_from_scratch(
        "train", write_config(run_config, tmp_path), "--run-dir", tmp_path / "run", environment={"TMPDIR": str(long)}
    )
    assert result.returncode == 0, result.stderr
    images = plant(
        tmp_path / "zoo", *(f"{split}/{name}/{n}.jpg" for split in ("train", "val") for name in ("ant", "bee") for n in range(4))
    )
    command = ["data", "prepare", images, tmp_path / "out", "--processes", 2, "--samples-per-shard", 2]
    result = tdformer(*command, environment={"TMPDIR": str(long)})
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "train" / MANIFEST).exists()
