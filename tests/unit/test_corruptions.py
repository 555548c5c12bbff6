"""Corruption suites: written the same by any number of processes, and summed up as published."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from data_pipelines.formats.corruption_kinds import KINDS
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.prepare.corrupted_source import CorruptedSource
from data_pipelines.sources.layouts import open_splits
from launch.cli import app
from tdformer.inference.corruptions import errors_of, read_baseline, summary
from tests.stripes import StripesSource, stored

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(StripesSource(6, seed=2), tmp_path_factory.mktemp("corrupt") / "val")


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=float)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_an_image_and_more_so_at_a_higher_severity(val: Path, kind: str) -> None:
    data = open_dataset(val)
    clean = np.asarray(data.read(0), dtype=float)
    mild, strong, again = (CorruptedSource(data, kind, severity, seed=0)[0] for severity in (1, 5, 5))
    assert strong.data == again.data
    assert strong.key == data.index.key_of(0)
    changes = [np.abs(pixels(sample.data) - clean).mean() for sample in (mild, strong)]
    assert min(changes) > 0
    if kind != "frost":  # each severity draws a picture of frost of its own
        assert changes[0] < changes[1]


def test_noise_depends_on_seed_sample_kind_and_severity_alone(val: Path) -> None:
    data = open_dataset(val)
    noise = {
        (kind, severity, seed, index): pixels(CorruptedSource(data, kind, severity, seed)[index].data) - np.asarray(data.read(index), float)
        for kind in ("gaussian_noise", "shot_noise")
        for severity in (1, 2)
        for seed in (0, 1)
        for index in (0, 1)
    }
    assert len({changed.tobytes() for changed in noise.values()}) == len(noise)
    state = np.random.get_state()[1].tobytes()
    CorruptedSource(data, "gaussian_noise", 1, 0)[0]
    assert np.random.get_state()[1].tobytes() == state, "the draws of the program are its own"


def test_a_suite_is_the_same_on_any_number_of_processes_and_is_written_once(val: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["data", "corrupt", str(val), *map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    options = ("--kinds", "fog,gaussian_noise", "--severities", "1,5")
    assert "gaussian_noise-5" in run(tmp_path / "none", *options, "--dry-run")
    assert not (tmp_path / "none").exists()
    for processes in (1, 2):
        run(tmp_path / f"by-{processes}", *options, "--processes", processes)
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}
        for folder in (tmp_path / "by-1", tmp_path / "by-2")
    )
    assert one == two
    assert {path.parts[0] for path in one} == {"fog-1", "fog-5", "gaussian_noise-1", "gaussian_noise-5"}
    assert "already there" in run(tmp_path / "by-1", *options)


def test_a_suite_of_some_samples_has_those_of_the_whole_at_equal_distances(val: Path) -> None:
    data = open_dataset(val)
    whole, some = CorruptedSource(data, "fog", 3, 0), CorruptedSource(data, "fog", 3, 0, samples=2)
    assert [some[index].data for index in range(len(some))] == [whole[0].data, whole[3].data]
    assert some.origin(1) == whole.origin(3)
    assert len({source.fingerprint() for source in (whole, some, CorruptedSource(data, "fog", 3, 0, samples=6))}) == 2
    with pytest.raises(UserError, match="holds 6 samples, 7 cannot be taken"):
        CorruptedSource(data, "fog", 3, 0, samples=7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--kinds", "fog,rain"), "there is no corruption rain; the kinds are gaussian_noise, "),
        (("--severities", "6"), "--severities 6: give numbers from 1 to 5"),
        (("--severities", "0-2"), "--severities 0-2: give numbers from 1 to 5"),
        (("--severities", "high"), "give numbers from 1 to 5"),
        (("--severities", "5-1"), "give numbers from 1 to 5"),
        (("--severities", "²"), "give numbers from 1 to 5"),
        (("--severities", "1-99999999999"), "give numbers from 1 to 5"),
    ],
)
def test_what_is_no_suite_is_refused(val: Path, tmp_path: Path, arguments: tuple[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CliRunner().invoke(app, ["data", "corrupt", str(val), str(tmp_path / "out"), *arguments], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["", "suite"])
def test_a_suite_is_never_written_over_its_source(val: Path, out: str) -> None:
    before = sorted(path.name for path in val.iterdir())
    with pytest.raises(UserError, match="lie within each other"):
        CliRunner().invoke(app, ["data", "corrupt", str(val), str(val / out)], catch_exceptions=False)
    assert sorted(path.name for path in val.iterdir()) == before


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_28_pixels_are_enlarged(kind: str, small: Path) -> None:
    """MNIST and Fashion-MNIST have such images, and they are grey."""
    assert pixels(CorruptedSource(open_dataset(small), kind, 3, 0)[0].data).shape == (32, 48, 3)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    for split in ("train", "val"):
        grey = np.random.default_rng(1).integers(0, 256, (3, 28, 42), np.uint8)
        np.savez(folder / f"{split}.npz", images=grey, labels=np.arange(3))
    return stored(open_splits(str(folder))["val"], folder / "stored")


# --- the summary ---------------------------------------------------------------------------------------------


def rows(**top1: float) -> list[dict[str, object]]:
    return [{"data_set": name.replace("_at_", "-"), "top1": value} for name, value in top1.items()]


def test_errors_and_mce() -> None:
    suite = rows(fog_at_2=70.0, fog_at_1=90.0, gaussian_noise_at_1=60.0, clean=99.0)
    baseline = errors_of(rows(fog_at_1=80.0, fog_at_2=60.0, gaussian_noise_at_1=50.0))
    found = summary(suite, baseline)
    assert found["errors"] == {"gaussian_noise": {1: 40.0}, "fog": {1: 10.0, 2: 30.0}}
    assert found["mean_errors"] == {"gaussian_noise": 40.0, "fog": 20.0}
    assert found["mean_error"] == 30.0
    assert found["ce"] == pytest.approx({"gaussian_noise": 80.0, "fog": 100 * 40 / 60})
    assert found["mce"] == pytest.approx((80 + 100 * 40 / 60) / 2)
    assert summary(rows(clean=99.0)) == {}
    assert "mce" not in summary(suite)


def test_a_baseline_that_does_not_fit_is_told(tmp_path: Path) -> None:
    suite = rows(fog_at_1=90.0, fog_at_2=70.0)
    with pytest.raises(UserError, match="was not evaluated on fog-2"):
        summary(suite, errors_of(rows(fog_at_1=80.0)))
    with pytest.raises(UserError, match="makes no error on fog"):
        summary(suite, errors_of(rows(fog_at_1=100.0, fog_at_2=100.0)))
    path = tmp_path / "baseline.json"
    for content in ("", "[]", "{}", '{"data_sets": 3}'):
        path.write_text(content)
        with pytest.raises(UserError, match="is no result of a suite"):
            read_baseline(path)
    path.write_text(json.dumps({"data_sets": suite}))
    assert read_baseline(path) == {"fog": {1: 10.0, 2: 30.0}}
