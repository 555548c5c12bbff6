"""Shards on disk: what is written is read back, and every kind of damage is named with its place and a remedy."""

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

from data_pipelines.errors import DataError
from data_pipelines.shard_index import Index
from data_pipelines.shards import ShardSet, count_samples, verify, write_shards
from data_pipelines.sources import ImageFolderSource, RawSample, Source, open_splits
from tests.unit.conftest import (
    CLASSES,
    PER_SHARD,
    SAMPLES,
    MemorySource,
    Prepare,
    keys_of,
    noise_png,
    noise_sample,
    reseal,
    rewrite_members,
)

REMEDIES = ("prepare", "copy it again", "choose another folder", "remove", "rename", "expected", "give a folder")


def error_of(action: Callable[[], object], *mentions: object) -> str:
    """The text of the DataError that an action raises, which must mention all of `mentions` and a remedy."""
    with pytest.raises(DataError) as caught:
        action()
    text = str(caught.value)
    assert [str(mention) for mention in mentions if str(mention) not in text] == []
    assert any(remedy in text for remedy in REMEDIES)
    return text


def image_at(shards: ShardSet, sample: int) -> bytes:
    """The bytes that the index points at."""
    offset, size = int(shards.index.offset[sample]), int(shards.index.size[sample])
    return shards.path_of(sample).read_bytes()[offset : offset + size]


def converted(png: bytes, image_format: str) -> bytes:
    encoded = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(encoded, format=image_format)
    return encoded.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_index(one: Index, other: Index) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("shard", "offset", "size", "label", "key"))


def place_of(shards: ShardSet, key: str) -> int:
    return keys_of(shards).index(key)


# --- writing and reading back ------------------------------------------------------------------------------


def test_what_is_written_is_read_back(source: MemorySource, shards: ShardSet) -> None:
    by_key = {sample.key: sample for sample in source.samples}
    assert len(shards) == SAMPLES
    assert shards.classes == list(CLASSES)
    assert sorted(keys_of(shards)) == sorted(by_key)
    for position, key in enumerate(keys_of(shards)):
        assert shards.index.label[position] == by_key[key].label
        assert image_at(shards, position) == by_key[key].image


def test_shards_hold_the_asked_number_of_samples_and_the_last_one_the_rest(shared_folder: Path, shards: ShardSet) -> None:
    assert [shard.samples for shard in shards.shards] == [5, 5, 5, 5, 3]
    assert Counter(shards.index.shard.tolist()) == dict(enumerate([5, 5, 5, 5, 3]))
    assert count_samples(shared_folder) == SAMPLES
    assert sorted(path.name for path in shared_folder.iterdir()) == ["index.npz", "manifest.json", *(shard.name for shard in shards.shards)]


def test_shards_are_plain_tar_files_of_pairs(shared_folder: Path, shards: ShardSet) -> None:
    with tarfile.open(shared_folder / "shard-000000.tar") as tar:
        names = tar.getnames()
    assert sorted(names) == sorted(f"{key}.{extension}" for key in keys_of(shards)[:PER_SHARD] for extension in ("cls", "png"))


def test_webdataset_itself_reads_the_same_samples_in_the_same_order(source: MemorySource, shards: ShardSet) -> None:
    urls = [str(shards.folder / shard.name) for shard in shards.shards]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == keys_of(shards)
    assert [sample["png"] for sample in read] == [image_at(shards, position) for position in range(SAMPLES)]
    assert [int(sample["cls"]) for sample in read] == shards.index.label.tolist()


def test_jpeg_and_png_lie_side_by_side(tmp_path: Path) -> None:
    jpeg = converted(noise_png(0), "JPEG")
    samples = [RawSample("ant/a", "jpg", jpeg, 0), RawSample("bee/b", "png", noise_png(1), 1)]
    write_shards(MemorySource(samples), tmp_path / "set")
    shards = ShardSet.open(tmp_path / "set")
    assert {key: image_at(shards, place_of(shards, key)) for key in ("ant/a", "bee/b")} == {"ant/a": jpeg, "bee/b": noise_png(1)}
    assert verify(tmp_path / "set") == []


def test_the_same_seed_gives_the_same_bytes(source: MemorySource, shared_folder: Path, tmp_path: Path) -> None:
    write_shards(source, tmp_path / "again", samples_per_shard=PER_SHARD)
    again, first = contents(tmp_path / "again"), contents(shared_folder)
    # The index is a zip file with times in it; what it says is compared elsewhere.
    assert again.pop("index.npz")
    assert again == {name: data for name, data in first.items() if name != "index.npz"}


def test_another_seed_gives_another_order_of_the_same_samples(source: MemorySource, shards: ShardSet, tmp_path: Path) -> None:
    write_shards(source, tmp_path / "other", samples_per_shard=PER_SHARD, seed=1)
    other = keys_of(ShardSet.open(tmp_path / "other"))
    written, first = [sample.key for sample in source.samples], keys_of(shards)
    assert sorted(other) == sorted(first) == sorted(written)
    assert len({tuple(other), tuple(first), tuple(written)}) == 3


def test_progress_adds_up_to_all_samples(source: MemorySource, tmp_path: Path) -> None:
    written: list[int] = []
    checked: list[int] = []
    write_shards(source, tmp_path / "set", samples_per_shard=10, progress=written.append)
    verify(tmp_path / "set", checked.append)
    assert written == checked == [10, 10, 3]


@pytest.mark.parametrize(("samples_per_shard", "seed"), [(PER_SHARD, 1), (PER_SHARD + 1, 0)])
def test_another_set_is_never_overwritten(source: MemorySource, folder: Path, samples_per_shard: int, seed: int) -> None:
    before = contents(folder)
    error_of(lambda: write_shards(source, folder, samples_per_shard=samples_per_shard, seed=seed), folder, "already holds")
    assert contents(folder) == before


def test_the_rest_of_an_interrupted_preparation_is_no_set_and_is_not_overwritten(source: MemorySource, folder: Path) -> None:
    """It could be anybody's file of that name."""
    (folder / "manifest.json").unlink()
    (folder / "shard-000001.tar").write_bytes(b"half a shard")
    error_of(lambda: ShardSet.open(folder), folder, "manifest.json")
    error_of(lambda: write_shards(source, folder, samples_per_shard=PER_SHARD), folder, "no manifest", f"remove {folder} first")
    assert (folder / "shard-000001.tar").read_bytes() == b"half a shard"


# --- the index ---------------------------------------------------------------------------------------------


def test_a_deleted_index_is_made_again(folder: Path, shards: ShardSet) -> None:
    (folder / "index.npz").unlink()
    assert same_index(ShardSet.open(folder).index, shards.index)
    with np.load(folder / "index.npz") as saved:
        assert [key.decode() for key in saved["key"]] == keys_of(shards)


@pytest.mark.parametrize("damage", [lambda data: b"junk", lambda data: data[: len(data) // 2], lambda data: data[:1] + b"?" + data[2:]])
def test_a_damaged_index_is_made_again(folder: Path, shards: ShardSet, damage: Callable[[bytes], bytes]) -> None:
    damaged = damage((folder / "index.npz").read_bytes())
    (folder / "index.npz").write_bytes(damaged)
    assert same_index(ShardSet.open(folder).index, shards.index)
    with np.load(folder / "index.npz") as saved:
        assert [key.decode() for key in saved["key"]] == keys_of(shards)


def test_the_index_of_other_shards_is_not_believed(source: MemorySource, folder: Path, shards: ShardSet, tmp_path: Path) -> None:
    write_shards(source, tmp_path / "other", samples_per_shard=PER_SHARD, seed=1)
    shutil.copy(tmp_path / "other" / "index.npz", folder / "index.npz")
    assert same_index(ShardSet.open(folder).index, shards.index)


def test_a_set_whose_index_cannot_be_written_still_opens(folder: Path, shards: ShardSet) -> None:
    # A directory in the index's place cannot be replaced by a file, not even by root, whom a read-only folder would not stop.
    (folder / "index.npz").unlink()
    (folder / "index.npz").mkdir()
    assert same_index(ShardSet.open(folder).index, shards.index)
    assert (folder / "index.npz").is_dir()


# --- damage that opening finds -----------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    error_of(lambda: ShardSet.open(tmp_path / "nowhere"), tmp_path / "nowhere", "does not exist")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    error_of(lambda: ShardSet.open(tmp_path), tmp_path, "has no manifest.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 1}', '{"version": 1, "shards": [{"name": "a"}]}', "\xff"])
def test_a_broken_manifest_is_named(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    error_of(lambda: ShardSet.open(folder), folder / "manifest.json", "damaged")


def change_manifest(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | values))


def test_a_manifest_of_another_version_is_refused(folder: Path) -> None:
    change_manifest(folder, version=99)
    error_of(lambda: ShardSet.open(folder), folder / "manifest.json", "version 99")


def test_a_manifest_without_shards_is_refused(folder: Path) -> None:
    change_manifest(folder, shards=[])
    error_of(lambda: ShardSet.open(folder), folder / "manifest.json", "no shard")


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "shard-000003.tar").unlink()
    error_of(lambda: ShardSet.open(folder), folder / "shard-000003.tar", "missing")


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_a_truncated_shard_is_named_even_if_the_index_is_there(folder: Path) -> None:
    truncate(folder / "shard-000003.tar")
    error_of(lambda: ShardSet.open(folder), folder / "shard-000003.tar", "truncated")


@pytest.mark.parametrize("kept", [0, 700, 5000])
def test_a_shard_that_was_truncated_before_its_manifest_was_made_is_named(folder: Path, kept: int) -> None:
    path = folder / "shard-000003.tar"
    path.write_bytes(path.read_bytes()[:kept])
    reseal(folder)
    error_of(lambda: ShardSet.open(folder), path)


def test_a_shard_with_fewer_samples_than_the_manifest_says_is_named(folder: Path) -> None:
    path = folder / "shard-000004.tar"
    lost = keys_of(ShardSet.open(folder))[-1]
    rewrite_members(path, lambda name, data: None if name.startswith(f"{lost}.") else data)
    reseal(folder)
    error_of(lambda: ShardSet.open(folder), path, "holds 2 samples", "says 3")


@pytest.mark.parametrize("label", [-1, len(CLASSES), 10**6])
def test_a_label_that_is_no_class_is_named(source: MemorySource, prepare: Prepare, label: int) -> None:
    folder = prepare({7: replace(source[7], label=label)})
    error_of(lambda: ShardSet.open(folder), source[7].key, folder / "shard-", f"label {label}", "3 classes")


@pytest.mark.parametrize("text", [b"", b"bee", b"1.5", b"\xff"])
def test_a_cls_member_that_holds_no_number_is_named(source: MemorySource, folder: Path, text: bytes) -> None:
    key = source[7].key
    shards = ShardSet.open(folder)
    path = shards.path_of(place_of(shards, key))
    rewrite_members(path, lambda name, data: text if name == f"{key}.cls" else data)
    reseal(folder)
    error_of(lambda: ShardSet.open(folder), f"{key}.cls", path)


@pytest.mark.parametrize("extension", ["cls", "png"])
def test_a_sample_without_its_label_or_its_image_is_named(source: MemorySource, folder: Path, extension: str) -> None:
    key = source[7].key
    shards = ShardSet.open(folder)
    path = shards.path_of(place_of(shards, key))
    rewrite_members(path, lambda name, data: None if name == f"{key}.{extension}" else data)
    reseal(folder)
    error_of(lambda: ShardSet.open(folder), f"sample {key} ", path, "lacks")


# --- damage that verifying finds ---------------------------------------------------------------------------


def test_a_whole_set_has_no_damage(shared_folder: Path) -> None:
    assert verify(shared_folder) == []


def flip_byte_of_image(shards: ShardSet, sample: int, position: int) -> Path:
    path = shards.path_of(sample)
    data = bytearray(path.read_bytes())
    data[int(shards.index.offset[sample]) + position] ^= 0xFF
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("position", [0, 18, 600])  # signature, width, pixels
def test_verify_names_shard_and_key_of_a_flipped_byte(source: MemorySource, folder: Path, position: int) -> None:
    shards = ShardSet.open(folder)
    path = flip_byte_of_image(shards, place_of(shards, source[7].key), position)
    by_hash, by_decoding = verify(folder)
    assert str(path) in by_hash
    assert "SHA-256" in by_hash
    assert f"sample {source[7].key} in {path}" in by_decoding
    ShardSet.open(folder)  # which reads no image, and therefore does not find it


def test_verify_names_the_shard_of_a_change_that_leaves_all_images_whole(source: MemorySource, folder: Path) -> None:
    shards = ShardSet.open(folder)
    path = shards.path_of(place_of(shards, source[7].key))
    size = path.stat().st_size
    rewrite_members(path, lambda name, data: b"0" if name == f"{source[7].key}.cls" else data)
    assert path.stat().st_size == size
    (damage,) = verify(folder)
    assert str(path) in damage
    assert "SHA-256" in damage


# Pillow would read the last one: its many other decoders are not for data to reach.
@pytest.mark.parametrize(
    "image", [b"", b"not an image", noise_png(7)[:900], converted(noise_png(7), "BMP")], ids=["empty", "text", "half", "whole, but BMP"]
)
def test_verify_names_shard_and_key_of_an_undecodable_image(source: MemorySource, prepare: Prepare, image: bytes) -> None:
    folder = prepare({7: replace(source[7], image=image)})
    shards = ShardSet.open(folder)
    (damage,) = verify(folder)
    assert f"{shards.describe(place_of(shards, source[7].key))}: " in damage
    assert "cannot be decoded" in damage


def test_verify_names_shard_and_key_of_a_label_that_is_no_class(source: MemorySource, prepare: Prepare) -> None:
    folder = prepare({7: replace(source[7], label=3)})
    (damage,) = verify(folder)
    assert f"sample {source[7].key} in {folder / 'shard-'}" in damage
    assert "label 3" in damage


def test_verify_goes_on_after_a_truncated_and_a_missing_shard(folder: Path) -> None:
    shards = ShardSet.open(folder)
    truncate(folder / "shard-000001.tar")
    (folder / "shard-000002.tar").unlink()
    damaged = flip_byte_of_image(shards, SAMPLES - 1, 0)
    truncated, missing, changed, undecodable = verify(folder)
    assert str(folder / "shard-000001.tar") in truncated
    assert str(folder / "shard-000002.tar") in missing
    assert str(damaged) in changed
    assert keys_of(shards)[-1] in undecodable


def test_verify_names_the_shard_that_is_no_tar(folder: Path) -> None:
    (folder / "shard-000001.tar").write_bytes(b"no tar" * 1000)
    reseal(folder)
    (damage,) = verify(folder)
    assert str(folder / "shard-000001.tar") in damage


# --- sources -----------------------------------------------------------------------------------------------


def plant(root: Path, *names: str) -> Path:
    """A tree of pictures, PNG or JPEG by their names."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(converted(noise_png(number), "PNG" if path.suffix.lower() == ".png" else "JPEG"))
    return root


def test_an_image_folder_gives_its_files_sorted_by_class_and_name(tmp_path: Path) -> None:
    root = plant(tmp_path, "zebra/1.jpg", "ant/b.PNG", "ant/a.b.jpeg", "bee/1.png")
    (root / "ant" / "notes.txt").write_text("no image")
    (root / "list.png").write_bytes(b"a file beside the class folders")
    source = ImageFolderSource(root)
    samples = [source[index] for index in range(len(source))]
    assert source.classes == ["ant", "bee", "zebra"]
    assert [(sample.key, sample.extension, sample.label) for sample in samples] == [
        ("ant/a_b", "jpg", 0),
        ("ant/b", "png", 0),
        ("bee/1", "png", 1),
        ("zebra/1", "jpg", 2),
    ]
    assert samples[3].image == (root / "zebra" / "1.jpg").read_bytes()


def test_validation_labels_follow_the_classes_of_training(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/ant/1.png", "train/bee/1.png", "train/cat/1.png", "val/cat/2.png", "val/ant/2.png")
    splits = open_splits(str(root))
    assert list(splits) == ["train", "val"]
    assert splits["val"].classes == splits["train"].classes == ["ant", "bee", "cat"]
    assert [(splits["val"][index].key, splits["val"][index].label) for index in range(2)] == [("ant/2", 0), ("cat/2", 2)]


def test_a_validation_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    root = plant(tmp_path, "train/ant/1.png", "val/ant/1.png", "val/dog/1.png")
    error_of(lambda: open_splits(str(root)), root / "val", "dog")


@pytest.mark.parametrize("names", [[], ["ant/notes.txt"]])
def test_a_folder_without_images_is_named(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    error_of(lambda: ImageFolderSource(tmp_path), tmp_path, ".png")


def test_a_source_that_is_no_folder_is_named(tmp_path: Path) -> None:
    error_of(lambda: open_splits(str(tmp_path / "nowhere")), tmp_path / "nowhere", "is not a folder")


@pytest.mark.parametrize(("present", "missing"), [("train", "val"), ("val", "train")])
def test_a_source_without_one_of_its_splits_is_named(tmp_path: Path, present: str, missing: str) -> None:
    plant(tmp_path / present, "ant/1.png")
    error_of(lambda: open_splits(str(tmp_path)), tmp_path, f"no folder {missing}/")


def test_an_image_folder_survives_the_way_through_shards(tmp_path: Path) -> None:
    source = ImageFolderSource(plant(tmp_path / "tree", "größe/ein bild.png", "bee/" + "long" * 40 + ".jpg", "cat/.hidden.png"))
    write_shards(source, tmp_path / "set", samples_per_shard=2)
    shards = ShardSet.open(tmp_path / "set")
    for sample in (source[index] for index in range(len(source))):
        position = place_of(shards, sample.key)
        assert (image_at(shards, position), int(shards.index.label[position])) == (sample.image, sample.label)
    assert verify(tmp_path / "set") == []


@pytest.fixture(scope="module")
def mnist() -> dict[str, Source]:
    return open_splits("mnist")


@pytest.mark.parametrize(("split", "per_class"), [("train", 400), ("val", 100)])
def test_mnist_splits_hold_equally_many_of_each_digit(mnist: dict[str, Source], split: str, per_class: int) -> None:
    source = mnist[split]
    labels = Counter(source[index].label for index in range(len(source)))
    assert len(source) == 10 * per_class
    assert labels == dict.fromkeys(range(10), per_class)
    assert source.classes == [str(digit) for digit in range(10)]


def test_mnist_splits_share_no_digit(mnist: dict[str, Source]) -> None:
    keys = [source[index].key for source in mnist.values() for index in range(len(source))]
    assert len(set(keys)) == len(keys) == 5000


def test_mnist_digits_are_grey_images_of_28_pixels(mnist: dict[str, Source]) -> None:
    image = Image.open(io.BytesIO(mnist["val"][0].image))
    assert (image.format, image.size, image.mode) == ("PNG", (28, 28), "L")
    assert 0 < np.asarray(image).mean() < 128  # bright strokes on a dark ground


# --- a set that is there already ---------------------------------------------------------------------------


def test_preparing_the_same_set_again_writes_nothing(folder: Path, source: MemorySource) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_shards(source, folder, samples_per_shard=PER_SHARD) is False
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_damaged_set_is_not_taken_for_done(folder: Path, source: MemorySource) -> None:
    shard = folder / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    error_of(lambda: write_shards(source, folder, samples_per_shard=PER_SHARD), shard, "truncated", f"remove {folder}")


def test_another_source_seed_or_shard_size_is_refused(folder: Path, source: MemorySource) -> None:
    other = MemorySource([noise_sample(number + 100) for number in range(SAMPLES)])
    for attempt in (
        lambda: write_shards(other, folder, samples_per_shard=PER_SHARD),
        lambda: write_shards(source, folder, samples_per_shard=PER_SHARD, seed=1),
        lambda: write_shards(source, folder, samples_per_shard=PER_SHARD + 1),
    ):
        error_of(attempt, folder, "already holds another data set")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00v\x00{"])
def test_any_damage_of_the_index_is_mended(folder: Path, shards: ShardSet, content: bytes) -> None:
    (folder / "index.npz").write_bytes(content)
    assert keys_of(ShardSet.open(folder)) == keys_of(shards)


# --- image folders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [("cat/1.png", "cat/1.jpg"), ("cat/a.b.png", "cat/a_b.png"), ("c.at/1.png", "c_at/1.png")])
def test_files_whose_keys_would_be_the_same_are_refused(tmp_path: Path, one: str, other: str) -> None:
    for name in (one, other):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(noise_png(1))
    error_of(lambda: ImageFolderSource(tmp_path), tmp_path / one, tmp_path / other, "same key", "rename one")


def test_the_fingerprint_of_a_folder_changes_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(noise_png(1))
    first = ImageFolderSource(tmp_path).fingerprint()
    assert ImageFolderSource(tmp_path).fingerprint() == first
    (tmp_path / "cat" / "1.png").write_bytes(noise_png(1) + b"x")
    longer = ImageFolderSource(tmp_path).fingerprint()
    (tmp_path / "cat" / "folder.png").mkdir()
    assert ImageFolderSource(tmp_path).fingerprint() == longer
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "2.png")
    assert len({first, longer, ImageFolderSource(tmp_path).fingerprint()}) == 3
