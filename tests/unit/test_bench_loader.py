"""Tests the loader bench: the set that it generates, what its rows hold, and how it prints them. No speed is asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.errors import DataError
from tdformer.bench import loader, loader_pipelines, startup
from tdformer.bench.loader_pipelines import STORAGE, LoaderSetting, Pipeline
from tdformer.bench.photographs import NAMES, SIZES, write_photographs
from tests.conftest import tdformer

FEW = (
    Pipeline("imagefolder", "original", "crop+flip", "bicubic"),
    Pipeline("wds", "original", "crop+flip", "bicubic"),
    Pipeline("ffcv", "proportion", "crop+flip", "area"),
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def counted() -> tuple[list[int], Callable[[int], None]]:
    done: list[int] = []
    return done, done.append


def test_photographs_are_the_same_every_time_and_of_imagenets_sizes(tmp_path: Path) -> None:
    done, progress = counted()
    one = contents(write_photographs(tmp_path / "one", 20, progress=progress))
    assert one == contents(write_photographs(tmp_path / "other", 20, processes=2))
    assert sum(done) == len(one) == 20
    assert {Path(name).parent.name for name in one} == set(NAMES)
    for path in (tmp_path / "one").rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size in SIZES) == ("JPEG", "RGB", True)
    assert sum(SIZES.values()) == pytest.approx(1)


def test_a_folder_is_used_again_and_never_written_over(tmp_path: Path) -> None:
    train = write_photographs(tmp_path / "set", 10)
    written = {path: path.stat().st_mtime_ns for path in train.rglob("*.jpg")}
    assert write_photographs(tmp_path / "set", 10) == train
    assert written == {path: path.stat().st_mtime_ns for path in train.rglob("*.jpg")}
    with pytest.raises(DataError, match="holds another generated set"):
        write_photographs(tmp_path / "set", 11)
    with pytest.raises(DataError, match="holds other files"):
        write_photographs(train, 10)


def test_a_set_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    whole = contents(write_photographs(tmp_path, 10))
    (tmp_path / "train").rename(tmp_path / "train.unfinished")
    next((tmp_path / "train.unfinished").rglob("*.jpg")).write_bytes(b"half")
    assert contents(write_photographs(tmp_path, 10)) == whole


@pytest.mark.ffcv
@pytest.mark.slow
def test_rows_and_startup_times_are_complete(tmp_path: Path) -> None:
    done, progress = counted()
    sets = loader.prepare_sets(tmp_path / "set", 24, progress=progress)
    assert sum(done) == 24 * (1 + len(STORAGE))
    setting = LoaderSetting(batch=4, workers=1, batches=6)
    rows = loader.measure(sets, setting, 1, FEW)
    assert [(row.pipeline, row.storage, row.transforms, row.interpolation) for row in rows] == [tuple(pipeline) for pipeline in FEW]
    for row in rows:
        assert 0 < row.images_per_s_min <= row.images_per_s <= row.images_per_s_max
        assert row.cpu_s_per_image > 0
        assert 0 <= row.wait_share <= 1
        assert isfinite(row.ratio_to_imagefolder)
    assert rows[0].ratio_to_imagefolder == 1
    (tmp_path / "large").mkdir()
    measured = startup.measure_startup(sets, setting, 1, tmp_path / "large", samples=2500)
    assert [(start.pipeline, start.samples) for start in measured] == [("wds", 24), ("ffcv", 24), ("wds", 2500), ("ffcv", 2500)]
    assert len(measured) == startup.MEASURED_SETS
    assert all(min(start.open_s, start.first_batch_s, start.first_batch_after_resume_s) > 0 for start in measured)


def test_every_row_has_an_imagefolder_to_compare_with() -> None:
    assert {loader._reference_of(pipeline) for pipeline in loader_pipelines.PIPELINES} <= set(loader_pipelines.PIPELINES)


@pytest.mark.ffcv
@pytest.mark.slow
def test_the_command_prints_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from launch.cli import app

    monkeypatch.setattr(loader_pipelines, "PIPELINES", FEW[:2])
    monkeypatch.setattr(startup, "measure_startup", lambda *arguments, **options: [startup.Startup("wds", 24, 0.1, 0.1, 0.1)])
    options = ["bench", "loader", "--images", "24", "--batch", "4", "--workers", "1", "--rounds", "1", "--json"]
    shown = json.loads(CliRunner().invoke(app, [*options, "--folder", str(tmp_path / "set")], catch_exceptions=False).stdout)
    assert shown.keys() == {"conditions", "rows", "startup"}
    assert shown["conditions"]["images"] == 24
    assert shown["rows"][1].keys() == set(loader.Row.__dataclass_fields__)
    assert shown["startup"][0].keys() == set(startup.Startup.__dataclass_fields__)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--images", "10"], "--images 10 do not fill one batch of 64"),
        (["--images", "5", "--batch", "4"], "--images must be at least 9, one for each class, got 5"),
    ],
)
def test_wrong_options_are_errors_of_one_sentence(options: list[str], sentence: str) -> None:
    result = tdformer("bench", "loader", *options)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
