"""Tests that tar shards are read back as they were written, and that every damage gives an error with its location and a remedy."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_pipelines.formats.index import Index
from data_pipelines.formats.manifest_reader import read_manifest
from data_pipelines.formats.sample import RawSample
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.options import PrepareOptions
from data_pipelines.prepare.prepare_dataset import PrepareResult, prepare_dataset
from data_pipelines.prepare.verify_dataset import verify_dataset
from data_pipelines.sources.folders import ImageFolderSource
from tests.conftest import stored
from tests.unit.conftest import (
    CLASSES,
    PER_SHARD,
    SAMPLES,
    MemorySource,
    Prepare,
    contents,
    error_of,
    image_at,
    keys_of,
    noise_png,
    noise_sample,
    path_of,
    reseal,
    rewrite_members,
    sample_of,
)


def converted(png: bytes, image_format: str) -> bytes:
    encoded = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(encoded, format=image_format)
    return encoded.getvalue()


def index_of(folder: Path) -> Path:
    (path,) = folder.glob("index-*.npy")
    return path


def same_index(one: Index, other: Index) -> bool:
    return np.array_equal(one.rows, other.rows)


# --- writing and reading back ------------------------------------------------------------------------------


def test_what_is_written_is_read_back(source: MemorySource, shards: DataSet) -> None:
    by_key = {sample.key: sample for sample in source.samples}
    assert len(shards) == SAMPLES
    assert shards.classes == list(CLASSES)
    assert sorted(keys_of(shards)) == sorted(by_key)
    for position, key in enumerate(keys_of(shards)):
        assert shards.index["label"][position] == by_key[key].label
        assert image_at(shards, position) == by_key[key].data


def test_shards_hold_the_asked_number_of_samples_and_the_last_one_the_rest(shared_folder: Path, shards: DataSet) -> None:
    assert [shard.samples for shard in shards.manifest.shards] == [5, 5, 5, 5, 3]
    assert Counter(shards.index["shard"].tolist()) == dict(enumerate([5, 5, 5, 5, 3]))
    assert read_manifest(shared_folder).samples == SAMPLES
    names = [shard.name for shard in shards.manifest.shards]
    assert sorted(path.name for path in shared_folder.iterdir()) == [index_of(shared_folder).name, "manifest.json", *names]


def test_shards_are_plain_tar_files_of_pairs(shared_folder: Path, shards: DataSet) -> None:
    with tarfile.open(shared_folder / "shard-000000.tar") as tar:
        names = tar.getnames()
    assert sorted(names) == sorted(f"{key}.{extension}" for key in keys_of(shards)[:PER_SHARD] for extension in ("cls", "png"))


def test_webdataset_itself_reads_the_same_samples_in_the_same_order(source: MemorySource, shared_folder: Path, shards: DataSet) -> None:
    urls = [str(shared_folder / shard.name) for shard in shards.manifest.shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == keys_of(shards)
    assert [sample["png"] for sample in read] == [image_at(shards, position) for position in range(SAMPLES)]
    assert [int(sample["cls"]) for sample in read] == shards.index["label"].tolist()


def test_jpeg_and_png_lie_side_by_side(tmp_path: Path) -> None:
    jpeg = converted(noise_png(0), "JPEG")
    samples = [RawSample("ant/a", "jpg", jpeg, 0), RawSample("bee/b", "png", noise_png(1), 1)]
    stored(MemorySource(samples), tmp_path / "set")
    shards = open_dataset(tmp_path / "set")
    assert {key: image_at(shards, sample_of(shards, key)) for key in ("ant/a", "bee/b")} == {"ant/a": jpeg, "bee/b": noise_png(1)}
    assert verify_dataset(tmp_path / "set") == []


def test_the_same_seed_gives_the_same_bytes(source: MemorySource, shared_folder: Path, tmp_path: Path) -> None:
    assert contents(stored(source, tmp_path / "again", samples_per_shard=PER_SHARD)) == contents(shared_folder)


def test_another_seed_gives_another_order_of_the_same_samples(source: MemorySource, shards: DataSet, tmp_path: Path) -> None:
    stored(source, tmp_path / "other", samples_per_shard=PER_SHARD, seed=1)
    other = keys_of(open_dataset(tmp_path / "other"))
    written, first = [sample.key for sample in source.samples], keys_of(shards)
    assert sorted(other) == sorted(first) == sorted(written)
    assert len({tuple(other), tuple(first), tuple(written)}) == 3


def test_progress_adds_up_to_all_samples(source: MemorySource, tmp_path: Path) -> None:
    written: list[int] = []
    checked: list[int] = []
    prepare_dataset(source, tmp_path / "set", PrepareOptions(samples_per_shard=10), progress=written.append)
    verify_dataset(tmp_path / "set", progress=checked.append)
    assert written == [10, 10, 3]
    assert (checked[:3], sum(checked[3:])) == ([10, 10, 3], SAMPLES)


@pytest.mark.parametrize(("samples_per_shard", "seed"), [(PER_SHARD, 1), (PER_SHARD + 1, 0)])
def test_another_set_is_never_overwritten(source: MemorySource, folder: Path, samples_per_shard: int, seed: int) -> None:
    before = contents(folder)
    error_of(lambda: stored(source, folder, samples_per_shard=samples_per_shard, seed=seed), folder, "already holds")
    assert contents(folder) == before


def test_the_rest_of_an_interrupted_preparation_is_no_set_and_is_not_overwritten(source: MemorySource, folder: Path) -> None:
    """A file with such a name could be anybody's."""
    (folder / "manifest.json").unlink()
    (folder / "shard-000001.tar").write_bytes(b"half a shard")
    error_of(lambda: open_dataset(folder), folder, "manifest.json")
    error_of(lambda: stored(source, folder, samples_per_shard=PER_SHARD), folder, "no manifest", f"remove {folder} first")
    assert (folder / "shard-000001.tar").read_bytes() == b"half a shard"


def test_an_image_folder_survives_the_way_through_shards(tmp_path: Path) -> None:
    for number, name in enumerate(("größe/ein bild.png", "bee/" + "long" * 40 + ".jpg", "cat/.hidden.png")):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(converted(noise_png(number), "PNG" if path.suffix == ".png" else "JPEG"))
    source = ImageFolderSource(tmp_path / "tree")
    stored(source, tmp_path / "set", samples_per_shard=2)
    shards = open_dataset(tmp_path / "set")
    for sample in (source[index] for index in range(len(source))):
        position = sample_of(shards, sample.key)
        assert (image_at(shards, position), int(shards.index["label"][position])) == (sample.data, sample.label)
    assert verify_dataset(tmp_path / "set") == []


# --- the index ---------------------------------------------------------------------------------------------


def test_a_deleted_index_is_made_again(folder: Path, shards: DataSet) -> None:
    index_of(folder).unlink()
    assert same_index(open_dataset(folder).index, shards.index)
    assert [key.decode() for key in np.load(index_of(folder))["key"]] == keys_of(shards)


@pytest.mark.parametrize("damage", [lambda data: b"junk", lambda data: data[: len(data) // 2], lambda data: data[:1] + b"?" + data[2:]])
def test_a_damaged_index_is_made_again(folder: Path, shards: DataSet, damage: Callable[[bytes], bytes]) -> None:
    damaged = damage(index_of(folder).read_bytes())
    index_of(folder).write_bytes(damaged)
    assert same_index(open_dataset(folder).index, shards.index)
    assert [key.decode() for key in np.load(index_of(folder))["key"]] == keys_of(shards)


def test_the_index_of_other_shards_is_not_believed(source: MemorySource, folder: Path, shards: DataSet, tmp_path: Path) -> None:
    stored(source, tmp_path / "other", samples_per_shard=PER_SHARD, seed=1)
    index_of(folder).unlink()
    shutil.copy(index_of(tmp_path / "other"), folder)
    assert same_index(open_dataset(folder).index, shards.index)
    assert len(list(folder.glob("index-*.npy"))) == 2


def test_a_set_whose_index_cannot_be_written_still_opens(folder: Path, shards: DataSet) -> None:
    # Root may write to a read-only folder. But even root cannot replace a directory by a file, so a directory takes the index's name.
    index = index_of(folder)
    index.unlink()
    index.mkdir()
    assert same_index(open_dataset(folder).index, shards.index)
    assert index.is_dir()


# --- damage that opening finds -----------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    error_of(lambda: open_dataset(tmp_path / "nowhere"), tmp_path / "nowhere", "does not exist")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    error_of(lambda: open_dataset(tmp_path), tmp_path, "has no manifest.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 2}', '{"version": 2, "shards": [{"name": "a"}]}', "\xff"])
def test_a_broken_manifest_is_named(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    error_of(lambda: open_dataset(folder), folder / "manifest.json", "damaged")


def change_manifest(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | values))


def test_a_manifest_of_another_version_is_refused(folder: Path) -> None:
    change_manifest(folder, version=99)
    error_of(lambda: open_dataset(folder), folder / "manifest.json", "version 99")


def test_a_manifest_without_shards_is_refused(folder: Path) -> None:
    change_manifest(folder, shards=[], blocks=[])
    error_of(lambda: open_dataset(folder), folder / "manifest.json", "no shard")


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "shard-000003.tar").unlink()
    error_of(lambda: open_dataset(folder), folder / "shard-000003.tar", "missing")


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_a_truncated_shard_is_named_even_if_the_index_is_there(folder: Path) -> None:
    truncate(folder / "shard-000003.tar")
    error_of(lambda: open_dataset(folder), folder / "shard-000003.tar", "truncated")


@pytest.mark.parametrize("kept", [0, 700, 5000])
def test_a_shard_that_was_truncated_before_its_manifest_was_made_is_named(folder: Path, kept: int) -> None:
    path = folder / "shard-000003.tar"
    path.write_bytes(path.read_bytes()[:kept])
    reseal(folder)
    error_of(lambda: open_dataset(folder), path)


def test_a_shard_with_fewer_samples_than_the_manifest_says_is_named(folder: Path) -> None:
    path = folder / "shard-000004.tar"
    lost = keys_of(open_dataset(folder))[-1]
    rewrite_members(path, lambda name, data: None if name.startswith(f"{lost}.") else data)
    reseal(folder)
    error_of(lambda: open_dataset(folder), path, "holds 2 samples", "says 3")


@pytest.mark.parametrize("label", [-1, len(CLASSES), 10**6])
def test_a_label_that_is_no_class_is_named(source: MemorySource, prepare: Prepare, label: int) -> None:
    folder = prepare({7: replace(source[7], label=label)})
    error_of(lambda: open_dataset(folder), source[7].key, folder / "shard-", f"label {label}", "3 classes")


@pytest.mark.parametrize("text", [b"", b"bee", b"1.5", b"\xff"])
def test_a_cls_member_that_holds_no_number_is_named(source: MemorySource, folder: Path, text: bytes) -> None:
    key = source[7].key
    shards = open_dataset(folder)
    path = path_of(shards, sample_of(shards, key))
    rewrite_members(path, lambda name, data: text if name == f"{key}.cls" else data)
    reseal(folder)
    error_of(lambda: open_dataset(folder), f"{key}.cls", path)


@pytest.mark.parametrize("extension", ["cls", "png"])
def test_a_sample_without_its_label_or_its_image_is_named(source: MemorySource, folder: Path, extension: str) -> None:
    key = source[7].key
    shards = open_dataset(folder)
    path = path_of(shards, sample_of(shards, key))
    rewrite_members(path, lambda name, data: None if name == f"{key}.{extension}" else data)
    reseal(folder)
    error_of(lambda: open_dataset(folder), f"sample {key} ", path, "lacks")


# --- a set that is there already ---------------------------------------------------------------------------


def test_preparing_the_same_set_again_writes_nothing(folder: Path, source: MemorySource) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = prepare_dataset(source, folder, PrepareOptions(samples_per_shard=PER_SHARD))
    assert done == PrepareResult(SAMPLES, left_out=0, resumed=SAMPLES, already_there=True)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_damaged_set_is_not_taken_for_done(folder: Path, source: MemorySource) -> None:
    shard = folder / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    error_of(lambda: stored(source, folder, samples_per_shard=PER_SHARD), shard, "truncated", f"remove {folder}")


def test_another_source_seed_or_shard_size_is_refused(folder: Path, source: MemorySource) -> None:
    other = MemorySource([noise_sample(number + 100) for number in range(SAMPLES)])
    for attempt in (
        lambda: stored(other, folder, samples_per_shard=PER_SHARD),
        lambda: stored(source, folder, samples_per_shard=PER_SHARD, seed=1),
        lambda: stored(source, folder, samples_per_shard=PER_SHARD + 1),
    ):
        error_of(attempt, folder, "already holds another data set")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00v\x00{"])
def test_any_damage_of_the_index_is_mended(folder: Path, shards: DataSet, content: bytes) -> None:
    index_of(folder).write_bytes(content)
    assert keys_of(open_dataset(folder)) == keys_of(shards)
