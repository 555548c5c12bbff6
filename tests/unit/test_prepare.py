"""Tests that preparing a data set gives the same bytes however it is done or interrupted, and that every mistake gives one sentence."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.formats.manifest import Format
from data_pipelines.formats.sample import RawSample
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.options import Encoding, PrepareOptions
from data_pipelines.prepare.prepare_dataset import PrepareResult, prepare_dataset
from data_pipelines.prepare.verify_dataset import VerifyOptions, verify_dataset
from tests.conftest import stored
from tests.distributed.starter import Started
from tests.unit import slow_prepare
from tests.unit.conftest import CLASSES, PER_SHARD, SAMPLES, MemorySource, contents, error_of, image_at, keys_of
from tests.unit.slow_prepare import pictures, plan

FORMATS: tuple[Format, ...] = ("wds", "ffcv")
both_formats = pytest.mark.parametrize("format", FORMATS)


def png(width: int, height: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(data, format="PNG")
    return data.getvalue()


def of_images(*images: bytes) -> MemorySource:
    return MemorySource([RawSample(f"picture-{number}", "png", image, 0) for number, image in enumerate(images)])


def by_key(data: DataSet) -> dict[str, np.ndarray]:
    return {key: np.asarray(data.read(sample)) for sample, key in enumerate(keys_of(data))}


# --- the same bytes ----------------------------------------------------------------------------------------


@pytest.mark.slow
@both_formats
def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path, format: Format) -> None:
    for processes in (1, 2):
        prepare_dataset(pictures(), tmp_path / str(processes), plan(format), processes=processes)
    written = contents(tmp_path / "1")
    assert contents(tmp_path / "2") == written
    assert not any(name.startswith(".") for name in written)
    assert verify_dataset(tmp_path / "1", VerifyOptions(hashes=True, all_images=True)) == []


@contextmanager
def preparing(folder: Path, format: Format, processes: int) -> Iterator[psutil.Process]:
    """Run `slow_prepare` in a process of its own, and kill it at the end."""
    process = Started("tests.unit.slow_prepare", [folder, format, processes], {}, folder.parent / "output")
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait(timeout=10)


def wait_for_records(folder: Path, least: int) -> int:
    """Wait until `count` parts are done, but not all."""
    deadline = time.monotonic() + 120
    while (done := len(list(folder.glob(".unfinished/part-*.json")))) < least:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert done < slow_prepare.SAMPLES // slow_prepare.PER_SHARD
    return done


@pytest.mark.slow
@both_formats
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_preparation_goes_on_and_gives_the_same_bytes(tmp_path: Path, format: Format, processes: int) -> None:
    folder = tmp_path / "set"
    with preparing(folder, format, processes) as process:
        done = wait_for_records(folder, 3)
        family = process.children(recursive=True)
    assert len(family) >= processes - 1
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert not (folder / "manifest.json").exists()
    assert not (folder / "samples.beton").exists()
    whole = prepare_dataset(pictures(), tmp_path / "whole", plan(format))
    expected = contents(tmp_path / "whole")
    shards = {path.name: path.read_bytes() for path in folder.glob("shard-*.tar")}
    assert shards == {name: expected[name] for name in shards}
    assert (len(shards) >= done) == (format == "wds")

    assert prepare_dataset(pictures(), folder, plan(format), processes=2).resumed >= 4 * done
    assert contents(folder) == expected
    assert whole == PrepareResult(slow_prepare.SAMPLES, left_out=0, resumed=0)


@pytest.mark.slow
@both_formats
def test_an_unfinished_set_is_gone_on_with_by_the_same_recipe_alone_and_by_one_process_at_a_time(tmp_path: Path, format: Format) -> None:
    folder = tmp_path / "set"
    with preparing(folder, format, 1):
        wait_for_records(folder, 1)
        error_of(lambda: prepare_dataset(pictures(), folder, plan(format)), folder, "another process is writing", "choose another folder")
    error_of(lambda: open_dataset(folder), folder, "is not whole", "give the same `tdformer data prepare` again")
    before = contents(folder)
    other = MemorySource(pictures().samples[:-1])
    attempts = {
        "seed 0, now 1": lambda: prepare_dataset(pictures(), folder, plan(format, seed=1)),
        "max_side": lambda: prepare_dataset(pictures(), folder, PrepareOptions(Encoding(format), slow_prepare.PER_SHARD)),
        "another source": lambda: prepare_dataset(other, folder, plan(format)),
    }
    for difference, attempt in attempts.items():
        error_of(attempt, folder, "was begun otherwise", difference)
    assert contents(folder) == before
    prepare_dataset(pictures(), folder, plan(format))
    assert len(open_dataset(folder)) == slow_prepare.SAMPLES


@both_formats
def test_a_part_whose_file_is_gone_or_changed_is_written_again(source: MemorySource, tmp_path: Path, format: Format) -> None:
    """Whatever happens to a folder between two attempts, the second attempt makes the data set complete."""
    folder, asked = tmp_path / "set", PrepareOptions(Encoding(format, max_side=512), PER_SHARD)
    prepare_dataset(source, tmp_path / "whole", asked)
    expected = contents(tmp_path / "whole")
    done: list[int] = []

    def stop_before_the_last(samples: int) -> None:
        done.append(samples)
        if len(done) == 4:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        prepare_dataset(source, folder, asked, progress=stop_before_the_last)
    assert done == [5, 5, 5, 5]
    parts = sorted(folder.glob("shard-*.tar") if format == "wds" else folder.glob(".unfinished/*.pages"))
    parts[0].unlink()
    parts[1].write_bytes(b"half")
    (folder / ".unfinished" / "part-000002.json").write_text('{"number":')
    assert prepare_dataset(source, folder, asked) == PrepareResult(SAMPLES, left_out=0, resumed=5)
    assert contents(folder) == expected


# --- files that are no image -------------------------------------------------------------------------------


def with_bad_ones(source: MemorySource) -> MemorySource:
    bad = {3: b"", 7: b"not an image", 11: source[11].data[:200], 12: png(3, 3).replace(b"IDAT", b"IDAX")}
    return MemorySource(
        [RawSample(sample.key, "png", bad.get(number, sample.data), sample.label) for number, sample in enumerate(source.samples)]
    )


@both_formats
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_no_whole_image_is_left_out_and_listed(source: MemorySource, tmp_path: Path, format: Format, processes: int) -> None:
    folder = tmp_path / "set"
    done = prepare_dataset(with_bad_ones(source), folder, PrepareOptions(Encoding(format, max_side=64), PER_SHARD), processes=processes)
    assert done == PrepareResult(SAMPLES - 4, left_out=4, resumed=0)
    data = open_dataset(folder)
    good = [sample for number, sample in enumerate(source.samples) if number not in (3, 7, 11, 12)]
    assert sorted(keys_of(data)) == sorted(sample.key for sample in good)
    labels = {sample.key: sample.label for sample in good}
    assert data.index["label"].tolist() == [labels[key] for key in keys_of(data)]
    assert (data.manifest.left_out, sum(data.manifest.blocks)) == (4, len(data))
    listed = dict(line.split("\t") for line in (folder / "left_out.tsv").read_text().splitlines())
    assert listed.keys() == {f"memory:{number}" for number in (3, 7, 11, 12)}
    assert all("cannot be decoded" in reason for reason in listed.values())
    assert verify_dataset(folder, VerifyOptions(hashes=True, all_images=True)) == []
    assert prepare_dataset(with_bad_ones(source), folder, PrepareOptions(Encoding(format, max_side=64), PER_SHARD)).already_there


def test_a_whole_set_has_no_list_of_what_was_left_out(shared_folder: Path) -> None:
    assert not (shared_folder / "left_out.tsv").exists()


@both_formats
def test_by_choice_the_first_bad_file_ends_the_job(source: MemorySource, tmp_path: Path, format: Format) -> None:
    asked = PrepareOptions(Encoding(format, max_side=64), PER_SHARD, stop_at_bad=True)
    error_of(lambda: prepare_dataset(with_bad_ones(source), tmp_path / "set", asked), "memory:", "cannot be decoded", "mend or remove it")
    assert not (tmp_path / "set" / "manifest.json").exists()


@both_formats
def test_a_part_of_bad_files_alone_leaves_no_trace(source: MemorySource, tmp_path: Path, format: Format) -> None:
    asked = PrepareOptions(Encoding(format, max_side=64), PER_SHARD)
    bad = set(asked.parts(SAMPLES)[1].samples.tolist())
    samples = [
        RawSample(sample.key, "png", b"" if number in bad else sample.data, sample.label) for number, sample in enumerate(source.samples)
    ]
    prepare_dataset(MemorySource(samples), tmp_path / "set", asked)
    before = contents(tmp_path / "set")
    data = open_dataset(tmp_path / "set")
    assert contents(tmp_path / "set") == before  # the index was found sound, and was not made again
    assert data.manifest.blocks == [5, 5, 5, 3]
    assert sorted(keys_of(data)) == sorted(sample.key for number, sample in enumerate(samples) if number not in bad)
    assert by_key(data).keys() == set(keys_of(data))
    assert not (tmp_path / "set" / "shard-000001.tar").exists()
    assert verify_dataset(tmp_path / "set", VerifyOptions(hashes=True, all_images=True)) == []


@both_formats
def test_nothing_but_bad_files_is_an_error(tmp_path: Path, format: Format) -> None:
    with pytest.raises(DataError, match=r"none of the 3 files is a whole image; the first: memory:\d: .*cannot be decoded"):
        prepare_dataset(of_images(b"", b"text", b"more"), tmp_path / "set", PrepareOptions(Encoding(format), 2))
    assert not (tmp_path / "set" / "manifest.json").exists()


@pytest.mark.parametrize("unreadable", [0, 5])
@both_formats
def test_a_file_that_cannot_be_read_is_left_out_too(source: MemorySource, tmp_path: Path, format: Format, unreadable: int) -> None:
    class Unreadable(MemorySource):
        def __getitem__(self, index: int) -> RawSample:
            if index == unreadable:
                raise DataError(f"picture {index} cannot be read")
            return super().__getitem__(index)

    done = prepare_dataset(Unreadable(source.samples), tmp_path / "set", PrepareOptions(Encoding(format, max_side=64)))
    assert done == PrepareResult(SAMPLES - 1, left_out=1, resumed=0)
    assert (tmp_path / "set" / "left_out.tsv").read_text() == f"memory:{unreadable}\tpicture {unreadable} cannot be read\n"


# --- how images are stored ---------------------------------------------------------------------------------

LONG, SMALL = png(60, 40), png(20, 30)


def test_images_keep_their_own_bytes_without_short_side_and_quality(tmp_path: Path) -> None:
    data = open_dataset(stored(of_images(LONG, SMALL), tmp_path / "set"))
    assert {key: image_at(data, sample) for sample, key in enumerate(keys_of(data))} == {"picture-0": LONG, "picture-1": SMALL}


@both_formats
def test_larger_images_are_reduced_to_the_short_side_and_keep_their_proportions(tmp_path: Path, format: Format) -> None:
    source = of_images(LONG, png(40, 60), png(20, 200), SMALL, png(30, 31))
    images = by_key(open_dataset(stored(source, tmp_path / "set", format, short_side=30)))
    assert [images[f"picture-{number}"].shape for number in range(5)] == [(30, 45, 3), (45, 30, 3), (200, 20, 3), (30, 20, 3), (31, 30, 3)]


def test_only_reduced_images_are_encoded_again(tmp_path: Path) -> None:
    data = open_dataset(stored(of_images(LONG, SMALL), tmp_path / "set", short_side=30))
    images = {key: image_at(data, sample) for sample, key in enumerate(keys_of(data))}
    assert images["picture-1"] == SMALL
    assert Image.open(io.BytesIO(images["picture-0"])).format == "JPEG"


def test_with_a_quality_every_image_is_encoded_again(tmp_path: Path) -> None:
    sizes = []
    for quality in (20, 90):
        data = open_dataset(stored(of_images(LONG, SMALL), tmp_path / str(quality), quality=quality))
        images = [image_at(data, sample) for sample in range(2)]
        assert {Image.open(io.BytesIO(image)).format for image in images} == {"JPEG"}
        assert {Image.open(io.BytesIO(image)).size for image in images} == {(60, 40), (20, 30)}
        sizes.append(sum(map(len, images)))
    assert sizes[0] < sizes[1]


def modes_of(folder: Path) -> list[int]:
    from data_pipelines.formats.ffcv_format import read_rows

    return read_rows(folder / "samples.beton")["image"]["mode"].tolist()


@pytest.mark.ffcv
@pytest.mark.parametrize(("mode", "expected"), [("jpg", 0), ("raw", 1)])
def test_ffcv_stores_every_image_in_the_asked_mode(source: MemorySource, tmp_path: Path, mode: str, expected: int) -> None:
    assert modes_of(stored(source, tmp_path / "set", "ffcv", mode=mode)) == [expected] * SAMPLES


@pytest.mark.ffcv
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_ffcv_stores_the_asked_share_as_jpeg_the_same_every_time(tmp_path: Path, share: float) -> None:
    image = png(8, 8)
    source = of_images(*[image] * 400)
    folders = [stored(source, tmp_path / name, "ffcv", samples_per_shard=150, mode="proportion", jpeg_share=share) for name in "ab"]
    assert contents(folders[0]) == contents(folders[1])
    jpegs = modes_of(folders[0]).count(0)
    assert abs(jpegs - 400 * share) <= (40 if 0 < share < 1 else 0)


@pytest.mark.ffcv
def test_ffcv_of_another_seed_stores_other_images_as_jpeg(tmp_path: Path) -> None:
    source = of_images(*[png(8, 8)] * 64)
    assert len({tuple(modes_of(stored(source, tmp_path / str(seed), "ffcv", mode="proportion", seed=seed))) for seed in range(3)}) == 3


@pytest.mark.ffcv
def test_ffcv_reduces_larger_images_to_max_side(tmp_path: Path) -> None:
    images = by_key(open_dataset(stored(of_images(png(100, 50), png(20, 80), SMALL), tmp_path / "set", "ffcv", max_side=40)))
    assert [images[f"picture-{number}"].shape for number in range(3)] == [(20, 40, 3), (40, 10, 3), (30, 20, 3)]


@pytest.mark.ffcv
def test_an_image_that_is_larger_than_ffcvs_page_is_named(tmp_path: Path) -> None:
    error_of(lambda: stored(of_images(SMALL, constant_png(2000, 1500)), tmp_path / "set", "ffcv", max_side=None), "picture-1", "--max-side")
    assert not (tmp_path / "set" / "manifest.json").exists()


def constant_png(width: int, height: int) -> bytes:
    image = io.BytesIO()
    Image.new("RGB", (width, height)).save(image, format="PNG")
    return image.getvalue()


@both_formats
@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (1, 1), (65_500, 1)])
@pytest.mark.parametrize("storage", [{}, {"quality": 90, "mode": "jpg", "short_side": 16}])
def test_images_of_any_proportions_are_stored(tmp_path: Path, format: Format, size: tuple[int, int], storage: dict[str, Any]) -> None:
    images = by_key(open_dataset(stored(of_images(SMALL, constant_png(*size)), tmp_path / "set", format, **storage)))
    width, height = (max(1, round(side * 512 / max(*size, 512))) for side in size) if format == "ffcv" else size
    assert images["picture-1"].shape == (height, width, 3)


@both_formats
@pytest.mark.parametrize("size", [(65_501, 1), (1, 70_000)])
def test_an_image_that_is_longer_than_jpeg_allows_is_left_out(tmp_path: Path, format: Format, size: tuple[int, int]) -> None:
    folder = stored(of_images(SMALL, constant_png(*size)), tmp_path / "set", format)
    assert keys_of(open_dataset(folder)) == ["picture-0"]
    assert "no side may be longer than 65500" in (folder / "left_out.tsv").read_text()


# --- no room -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@both_formats
@pytest.mark.parametrize(("limit", "processes"), [(0, 1), (100, 1), (2000, 2), (3500, 1), (2**20, 1), (3 * 2**20, 1)])
def test_a_disk_that_takes_no_more_is_reported_in_one_sentence_and_the_same_command_goes_on(
    tmp_path: Path, format: Format, limit: int, processes: int
) -> None:
    folder = tmp_path / "set"
    process = Started("tests.unit.slow_prepare", [folder, format, processes, "--limit", limit], {}, tmp_path / "output")
    assert process.wait(timeout=300) == 0
    assert "Traceback" not in process.output("stderr")
    (line,) = process.output().splitlines()
    if line == "written":
        assert limit >= 2**20
    else:
        assert str(folder) in line
        assert "cannot be" in line
        assert "None" not in line
        assert not (folder / "manifest.json").exists()
    prepare_dataset(pictures(), folder, plan(format))
    prepare_dataset(pictures(), tmp_path / "whole", plan(format))
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 6 MiB."""
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", tmp_path / "disk"], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


@both_formats
def test_a_full_disk_leaves_no_set_that_looks_whole(source: MemorySource, small_disk: Path, tmp_path: Path, format: Format) -> None:
    room = os.statvfs(small_disk)
    (small_disk / "other").write_bytes(bytes(room.f_bavail * room.f_frsize - (2**12 * 6 if format == "wds" else 3 * 2**20)))
    error_of(lambda: stored(source, small_disk / "set", format), small_disk / "set", "cannot be written (No space left on device)")
    assert not (small_disk / "set" / "manifest.json").exists()
    (small_disk / "other").unlink()
    if format == "wds":
        assert contents(stored(source, small_disk / "set")) == contents(stored(source, tmp_path / "whole"))


def test_a_folder_that_cannot_be_made_is_named(source: MemorySource, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "set", Path("/proc/set")):
        error_of(lambda folder=folder: stored(source, folder), folder, "cannot be made", "choose another folder")


def test_a_read_only_file_system_is_reported(source: MemorySource, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    error_of(lambda: stored(source, small_disk / "set"), small_disk / "set", "cannot be made (Read-only file system)")


def test_what_a_kill_after_the_manifest_left_behind_is_removed(source: MemorySource, tmp_path: Path) -> None:
    folder = stored(source, tmp_path / "set")
    expected = contents(folder)
    (folder / ".unfinished").mkdir()
    (folder / ".unfinished" / "part-000000.pages").write_bytes(b"large")
    stored(source, folder)
    assert contents(folder) == expected


def test_hidden_files_that_a_kill_left_behind_are_removed_and_others_are_not(source: MemorySource, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in (".123-shard-000000.tar", ".123-samples.beton", ".123-index-0.npy", ".123-manifest.json", ".my-notes"):
        (folder / name).touch()
    assert sorted(name for name in contents(stored(source, folder)) if name.startswith(".")) == [".my-notes"]


@pytest.mark.ffcv
def test_the_recipe_is_in_the_manifest(source: MemorySource, tmp_path: Path) -> None:
    folder = stored(source, tmp_path / "set", "ffcv", seed=4, samples_per_shard=7, quality=50)
    recipe = json.loads((folder / "manifest.json").read_text())["recipe"]
    assert recipe["source"] == source.fingerprint()
    assert (recipe["seed"], recipe["samples_per_shard"], recipe["quality"], recipe["mode"]) == (4, 7, 50, "raw")


def test_the_same_bytes_are_not_the_same_set_if_classes_have_other_names(source: MemorySource, tmp_path: Path) -> None:
    folder = stored(source, tmp_path / "set")
    renamed = MemorySource(source.samples, [*CLASSES[:-1], "dog"])
    error_of(lambda: stored(renamed, folder), folder, "already holds another data set")
