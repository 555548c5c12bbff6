"""Tests that verifying names every kind of damage, with the shard and, if there is one, the sample."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.formats.ffcv_format import HEAD, ROW, read_rows
from data_pipelines.formats.manifest import Format
from data_pipelines.formats.sample import RawSample
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.verify_dataset import VerifyOptions, verify_dataset
from tests.conftest import stored
from tests.unit.conftest import (
    PER_SHARD,
    SAMPLES,
    MemorySource,
    Prepare,
    error_of,
    keys_of,
    noise_png,
    overwrite_image,
    path_of,
    reseal,
    rewrite_members,
    sample_of,
)
from tests.unit.test_wds_shards import converted, index_of, same_index, truncate

FORMATS: tuple[Format, ...] = ("wds", "ffcv")


def both_formats(test: Callable) -> Callable:
    """Run a test on a copy of the set in each format. The set was written in both."""
    return pytest.mark.ffcv(pytest.mark.parametrize("format", FORMATS)(test))


THOROUGH = VerifyOptions(hashes=True, all_images=True)
KEY = "bee/picture-07"


@pytest.fixture(scope="session")
def whole(source: MemorySource, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`source` in both formats, FFCV as JPEG. No test may change the folders."""
    folder = tmp_path_factory.mktemp("whole") / "ffcv"
    return {"wds": shared_folder, "ffcv": stored(source, folder, "ffcv", samples_per_shard=PER_SHARD, mode="jpg")}


@pytest.fixture
def copy(whole: dict[str, Path], tmp_path: Path, format: Format) -> Path:
    return shutil.copytree(whole[format], tmp_path / "copy")


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0xFF]))


def flip_in_image(data: DataSet, key: str, position: int = 0) -> Path:
    sample = sample_of(data, key)
    flip(path_of(data, sample), int(data.index["offset"][sample]) + position)
    return path_of(data, sample)


def a_shard(folder: Path) -> Path:
    """The path of the shard that holds KEY."""
    data = open_dataset(folder)
    return path_of(data, sample_of(data, KEY))


# --- both formats ------------------------------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize("check", [VerifyOptions(), VerifyOptions(hashes=True), VerifyOptions(all_images=True), THOROUGH])
def test_a_whole_set_has_no_damage(whole: dict[str, Path], format: Format, check: VerifyOptions) -> None:
    looked_at: list[int] = []
    assert verify_dataset(whole[format], check, progress=looked_at.append) == []
    assert sum(looked_at) == 2 * SAMPLES


@both_formats
def test_a_missing_shard_is_named(copy: Path) -> None:
    path = a_shard(copy)
    path.unlink()
    (damage,) = verify_dataset(copy)
    assert f"{path} is missing" in damage


@both_formats
@pytest.mark.parametrize("kept", [0, 1, -1])
def test_a_truncated_shard_is_named(copy: Path, kept: int) -> None:
    path = a_shard(copy)
    os.truncate(path, kept if kept >= 0 else path.stat().st_size - 1)
    (damage,) = verify_dataset(copy)
    assert f"{path} has" in damage
    assert "truncated" in damage


@both_formats
def test_a_longer_shard_is_named(copy: Path) -> None:
    path = a_shard(copy)
    with path.open("ab") as file:
        file.write(b"\0")
    (damage,) = verify_dataset(copy)
    assert str(path) in damage


@both_formats
def test_a_flipped_byte_anywhere_in_a_shard_is_found_by_hashes(copy: Path) -> None:
    path = a_shard(copy)
    size = path.stat().st_size
    for position in (0, size // 3, size // 2, size - 1):
        flip(path, position)
        damage = verify_dataset(copy, VerifyOptions(hashes=True))
        assert any(f"{path} does not match its SHA-256" in line for line in damage)
        flip(path, position)
    assert verify_dataset(copy, THOROUGH) == []


@both_formats
def test_without_hashes_a_change_that_leaves_all_images_whole_is_not_looked_for(copy: Path) -> None:
    path = a_shard(copy)
    flip(path, path.stat().st_size - 1)
    assert len(verify_dataset(copy, VerifyOptions(hashes=True))) == 1
    assert verify_dataset(copy, VerifyOptions(all_images=True)) == []


@both_formats
def test_a_flipped_byte_in_an_image_is_named_with_shard_and_key(copy: Path) -> None:
    path = flip_in_image(open_dataset(copy), KEY)
    (damage,) = verify_dataset(copy, VerifyOptions(all_images=True))
    assert f"sample {KEY} in {path}: the image cannot be decoded" in damage
    assert f"remove {copy} and prepare it again" in damage
    open_dataset(copy)  # comparing sizes reads no image, so this damage is not found


@both_formats
def test_an_image_of_zeros_is_named_with_shard_and_key(copy: Path) -> None:
    path = overwrite_image(open_dataset(copy), KEY)
    (damage,) = verify_dataset(copy, VerifyOptions(all_images=True))
    assert f"sample {KEY} in {path}: the image cannot be decoded" in damage


@both_formats
def test_every_damaged_image_is_named(copy: Path) -> None:
    keys = keys_of(open_dataset(copy))[::4]
    for key in keys:
        flip_in_image(open_dataset(copy), key)
    damage = verify_dataset(copy, VerifyOptions(all_images=True))
    assert sorted(key for line in damage for key in keys if f"sample {key} in " in line) == sorted(keys)


@pytest.mark.slow
@both_formats
def test_two_processes_find_what_one_finds(copy: Path) -> None:
    for key in keys_of(open_dataset(copy))[::4]:
        flip_in_image(open_dataset(copy), key)
    images = [verify_dataset(copy, VerifyOptions(all_images=True), processes=processes) for processes in (1, 2)]
    assert sorted(images[0]) == sorted(images[1]) != []
    hashes = [verify_dataset(copy, VerifyOptions(hashes=True), processes=processes) for processes in (1, 2)]
    assert sorted(hashes[0]) == sorted(hashes[1]) != []
    a_shard(copy).unlink()
    missing = [verify_dataset(copy, processes=processes) for processes in (1, 2)]
    assert missing[0] == missing[1] != []


@both_formats
def test_more_than_a_thousand_images_are_looked_at_by_choice_only(tmp_path: Path, format: Format) -> None:
    image = noise_png(0, 8)
    many = MemorySource([RawSample(f"{number:04d}", "png", image, 0) for number in range(1200)])
    folder = stored(many, tmp_path / "set", format, samples_per_shard=400, mode="jpg")
    data = open_dataset(folder)
    for sample in range(len(data)):
        flip(path_of(data, sample), int(data.index["offset"][sample]))
    counts = []
    for check in (VerifyOptions(), VerifyOptions(), THOROUGH):
        looked_at: list[int] = []
        damage = [line for line in verify_dataset(folder, replace(check, hashes=False), progress=looked_at.append) if "decoded" in line]
        counts.append((len(set(damage)), sum(looked_at)))
    assert counts == [(1000, 2400), (1000, 2400), (1200, 2400)]


@both_formats
def test_a_set_without_a_manifest_is_an_error(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    error_of(lambda: verify_dataset(copy), copy, "has no manifest.json")


# --- labels ------------------------------------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_named_with_shard_and_key(source: MemorySource, tmp_path: Path, format: Format, label: int) -> None:
    samples = [replace(sample, label=label) if sample.key == KEY else sample for sample in source.samples]
    folder = stored(MemorySource(samples), tmp_path / "set", format, samples_per_shard=PER_SHARD)
    (damage,) = verify_dataset(folder)
    assert f"sample {KEY} in {folder}/s" in damage
    assert f"label {label}" in damage
    error_of(lambda: open_dataset(folder), KEY, folder, f"label {label}")


def change_ffcv_row(folder: Path, sample: int, column: str, value: int) -> None:
    """Change a row of the FFCV file, but not of the index. column: `label`, or a column of the image."""
    path = folder / "samples.beton"
    on_disk = np.memmap(path, ROW, "r+", HEAD.itemsize, read_rows(path).shape)
    if column == "label":
        on_disk["label"][sample] = value
    else:
        on_disk["image"][column][sample] = value
    on_disk.flush()


@pytest.mark.parametrize("format", ["ffcv"])
@pytest.mark.parametrize(
    ("column", "value"), [("label", 0), ("label", 2), ("data_ptr", 0), ("mode", 1), ("mode", 7), ("width", 0), ("height", 65_535)]
)
def test_an_ffcv_row_that_was_changed_is_named_with_its_key(copy: Path, column: str, value: int) -> None:
    change_ffcv_row(copy, sample_of(open_dataset(copy), KEY), column, value)
    (damage,) = verify_dataset(copy, VerifyOptions(all_images=True))
    assert f"sample {KEY} in {copy / 'samples.beton'}" in damage


@pytest.mark.parametrize("format", ["ffcv"])
def test_an_ffcv_image_that_is_said_to_have_another_size_is_named(copy: Path) -> None:
    change_ffcv_row(copy, sample_of(open_dataset(copy), KEY), "width", 19)
    (damage,) = verify_dataset(copy, VerifyOptions(all_images=True))
    assert f"sample {KEY} in {copy / 'samples.beton'}" in damage


def test_a_label_in_a_tar_that_the_index_does_not_know_of_is_named(folder: Path) -> None:
    path = a_shard(folder)
    size = path.stat().st_size
    rewrite_members(path, lambda name, data: b"0" if name == f"{KEY}.cls" else data)
    assert path.stat().st_size == size
    (damage,) = verify_dataset(folder)
    assert f"sample {KEY} in {path} " in damage
    assert len(verify_dataset(folder, VerifyOptions(hashes=True))) == 2


# --- the index ---------------------------------------------------------------------------------------------


def forge(folder: Path, change: Callable[[np.ndarray], object]) -> None:
    rows = np.load(index_of(folder))
    change(rows)
    np.save(index_of(folder), rows)


def swap_two(rows: np.ndarray) -> None:
    rows[[2, 9]] = rows[[9, 2]]


FORGERIES: dict[str, Callable[[np.ndarray], object]] = {
    "another shard": lambda rows: rows["shard"].__setitem__(4, 99),
    "behind the end": lambda rows: rows["offset"].__setitem__(4, 2**40),
    "before the start": lambda rows: rows["offset"].__setitem__(4, -1),
    "too long": lambda rows: rows["size"].__setitem__(4, 2**62),
    "overflow": lambda rows: (rows["offset"].__setitem__(4, 2**62), rows["size"].__setitem__(4, 2**62 + 2**61)),
}


@pytest.mark.ffcv
def test_an_index_that_is_missing_damaged_or_points_outside_is_made_again_for_tar_shards(whole: dict[str, Path], folder: Path) -> None:
    expected = open_dataset(whole["wds"]).index
    damages: list[Callable[[], object]] = [
        lambda: index_of(folder).unlink(),
        lambda: os.truncate(index_of(folder), 300),
        *(lambda change=change: forge(folder, change) for change in FORGERIES.values()),
    ]
    for damage in damages:
        damage()
        assert verify_dataset(folder, THOROUGH) == []
        assert same_index(open_dataset(folder).index, expected)


@pytest.mark.parametrize("format", ["ffcv"])
@pytest.mark.parametrize("forgery", [None, *FORGERIES])
def test_an_index_that_is_missing_or_points_outside_is_named_for_ffcv(copy: Path, forgery: str | None) -> None:
    if forgery is None:
        index_of(copy).unlink()
    else:
        forge(copy, FORGERIES[forgery])
    (damage,) = verify_dataset(copy)
    assert f"{copy} lacks the index file of its samples.beton, or it is damaged" in damage
    assert f"remove {copy} and prepare it again" in damage


@both_formats
@pytest.mark.parametrize(("column", "by"), [("label", 1), ("offset", -1), ("size", -100)])
def test_an_index_that_disagrees_with_its_shards_is_named_with_a_key(copy: Path, column: str, by: int) -> None:
    sample = sample_of(open_dataset(copy), KEY)
    path = a_shard(copy)
    forge(copy, lambda rows: rows[column].__setitem__(sample, rows[column][sample] + by))
    damage = verify_dataset(copy, VerifyOptions(all_images=True))
    assert len(damage) == 1
    assert f"sample {KEY} in {path}" in damage[0]


def test_an_index_with_the_rows_of_two_samples_exchanged_is_found_for_tar_shards(folder: Path) -> None:
    forge(folder, swap_two)
    assert len(verify_dataset(folder)) == 2
    index_of(folder).unlink()
    assert verify_dataset(folder, THOROUGH) == []


@pytest.mark.parametrize("format", ["ffcv"])
def test_exchanged_keys_of_an_ffcv_index_are_found_by_hashes(copy: Path) -> None:
    def swap_keys(rows: np.ndarray) -> None:
        rows["key"][[0, 1]] = rows["key"][[1, 0]]

    forge(copy, swap_keys)
    assert verify_dataset(copy) == []
    assert "names other samples, or in another order, than its manifest" in verify_dataset(copy, VerifyOptions(hashes=True))[0]


@pytest.mark.parametrize("format", ["ffcv"])
def test_the_index_of_another_ffcv_file_is_not_believed(source: MemorySource, copy: Path, tmp_path: Path) -> None:
    other = stored(source, tmp_path / "other", "ffcv", samples_per_shard=PER_SHARD, mode="jpg", seed=1)
    name = index_of(copy)
    name.unlink()
    shutil.copy(index_of(other), copy)
    assert "lacks the index file" in verify_dataset(copy)[0]
    index_of(copy).rename(name)
    assert "does not agree with the index" in verify_dataset(copy)[0]


@both_formats
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), damage=st.binary(min_size=1, max_size=40))
def test_no_damage_of_an_index_gives_another_error(copy: Path, where: float, damage: bytes) -> None:
    path = index_of(copy)
    before = path.read_bytes()
    start = int(where**3 * len(before))  # many of the changes are in the header
    path.write_bytes(before[:start] + damage + before[start + len(damage) :])
    try:
        assert all("\n" not in line for line in verify_dataset(copy, VerifyOptions(all_images=True)))
        try:
            keys_of(open_dataset(copy))
        except DataError as error:
            assert str(copy) in str(error)  # noqa: PT017
    finally:
        index_of(copy).write_bytes(before)


@pytest.mark.parametrize("format", ["ffcv"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 700), damage=st.binary(min_size=1, max_size=16))
def test_no_damage_of_ffcvs_header_and_rows_gives_another_error(copy: Path, where: int, damage: bytes) -> None:
    path = copy / "samples.beton"
    with path.open("r+b", buffering=0) as file:
        file.seek(where)
        before = file.read(len(damage))
        file.seek(where)
        file.write(damage)
        try:
            found = verify_dataset(copy, VerifyOptions(all_images=True))
        finally:
            file.seek(where)
            file.write(before)
    assert all("\n" not in line and str(copy) in line for line in found)


# --- tar shards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 18, 600])  # the bytes of the signature, the width and the pixels
def test_hash_and_decoder_both_name_a_flipped_byte(folder: Path, position: int) -> None:
    path = flip_in_image(open_dataset(folder), KEY, position)
    (by_hash,) = verify_dataset(folder, THOROUGH)
    assert f"{path} does not match its SHA-256" in by_hash
    (by_decoding,) = verify_dataset(folder, VerifyOptions(all_images=True))
    assert f"sample {KEY} in {path}" in by_decoding


# Pillow could decode the last one, but only its JPEG and PNG decoders may be used.
@pytest.mark.parametrize(
    "image", [b"", b"not an image", noise_png(7)[:900], converted(noise_png(7), "BMP")], ids=["empty", "text", "half", "whole, but BMP"]
)
def test_an_undecodable_image_in_a_tar_is_named_with_shard_and_key(folder: Path, image: bytes) -> None:
    path = a_shard(folder)
    rewrite_members(path, lambda name, data: image if name == f"{KEY}.png" else data)
    reseal(folder)
    (damage,) = verify_dataset(folder)
    assert f"sample {KEY} in {path}: the image cannot be decoded" in damage


def test_a_label_that_was_no_class_when_it_was_written_is_named(source: MemorySource, prepare: Prepare) -> None:
    folder = prepare({7: replace(source[7], label=3)})
    (damage,) = verify_dataset(folder)
    assert f"sample {KEY} in {folder / 'shard-'}" in damage
    assert "label 3" in damage


def test_verify_goes_on_after_a_truncated_and_a_missing_shard(folder: Path) -> None:
    data = open_dataset(folder)
    truncate(folder / "shard-000001.tar")
    (folder / "shard-000002.tar").unlink()
    damaged = flip_in_image(data, keys_of(data)[-1])
    truncated, missing, changed = verify_dataset(folder, THOROUGH)
    assert str(folder / "shard-000001.tar") in truncated
    assert str(folder / "shard-000002.tar") in missing
    assert str(damaged) in changed


def test_a_shard_that_is_no_tar_is_named(folder: Path) -> None:
    (folder / "shard-000001.tar").write_bytes(b"no tar" * 1000)
    reseal(folder)
    (damage,) = verify_dataset(folder)
    assert str(folder / "shard-000001.tar") in damage


def test_a_tar_that_holds_more_than_the_manifest_says_is_named(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][4]["samples"] = manifest["blocks"][4] = 2
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (damage,) = verify_dataset(folder)
    assert f"{folder / 'shard-000004.tar'} holds 3 samples, the manifest says 2" in damage
