"""Generates small data sets that the tests of the data pipeline share."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.formats.sample import RawSample
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.open_dataset import open_dataset
from data_pipelines.sources.base import LeftOut
from tests.conftest import stored

SAMPLES, PER_SHARD = 23, 5
CLASSES = ("ant", "bee", "cat")
REMEDIES = ("prepare", "copy it again", "choose another folder", "remove", "give the same ones", "the same command goes on", "--max-side")


@dataclass(frozen=True)
class MemorySource:
    """A source whose samples are in memory."""

    samples: Sequence[RawSample]
    classes: Sequence[str] = CLASSES
    ignored_files: int = 0
    left_out: Sequence[LeftOut] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> RawSample:
        return self.samples[index]

    def origin(self, index: int) -> str:
        return f"memory:{index}"

    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.samples).encode()).hexdigest()


def noise_png(number: int, size: int = 20) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    return png.getvalue()


def noise_sample(number: int) -> RawSample:
    label = number % len(CLASSES)
    return RawSample(f"{CLASSES[label]}/picture-{number:02d}", "png", noise_png(number), label)


@pytest.fixture(scope="session")
def source() -> MemorySource:
    """23 images of noise (PNG, 20x20) in 3 classes."""
    return MemorySource([noise_sample(number) for number in range(SAMPLES)])


@pytest.fixture(scope="session")
def shared_folder(source: MemorySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` in five shards. No test may change the folder."""
    folder = tmp_path_factory.mktemp("shared") / "train"
    return stored(source, folder, samples_per_shard=PER_SHARD)


@pytest.fixture(scope="session")
def shards(shared_folder: Path) -> DataSet:
    return open_dataset(shared_folder)


def keys_of(shards: DataSet) -> list[str]:
    return [shards.index.key_of(sample) for sample in range(len(shards))]


@pytest.fixture
def folder(shared_folder: Path, tmp_path: Path) -> Path:
    """A copy of `shared_folder` that a test may damage."""
    return shutil.copytree(shared_folder, tmp_path / "train")


Prepare = Callable[[dict[int, RawSample]], Path]


@pytest.fixture
def prepare(source: MemorySource, tmp_path: Path) -> Prepare:
    """A function that writes `source`, with some samples exchanged, into a folder of its own."""

    def prepare(exchanged: dict[int, RawSample]) -> Path:
        samples = [exchanged.get(number, sample) for number, sample in enumerate(source.samples)]
        return stored(MemorySource(samples), tmp_path / "train", samples_per_shard=PER_SHARD)

    return prepare


def sample_of(data: DataSet, key: str) -> int:
    return keys_of(data).index(key)


def path_of(data: DataSet, sample: int) -> Path:
    return Path(data.location) / data.manifest.shards[data.index["shard"][sample]].name


def image_at(data: DataSet, sample: int) -> bytes:
    """Read the bytes to which the index points."""
    offset, size = int(data.index["offset"][sample]), int(data.index["size"][sample])
    return path_of(data, sample).read_bytes()[offset : offset + size]


def overwrite_image(data: DataSet, key: str, start: int = 0, content: bytes | None = None) -> Path:
    """Damage a stored image from its byte `start` on, and keep its size. Without content, zeros are written up to its end."""
    sample = sample_of(data, key)
    size, path = int(data.index["size"][sample]), path_of(data, sample)
    with path.open("r+b") as file:
        file.seek(int(data.index["offset"][sample]) + start)
        file.write(bytes(size - start) if content is None else content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(action: Callable[[], object], *mentions: object, remedies: Sequence[str] = REMEDIES) -> str:
    """Check that an action raises a DataError of one line that mentions all of `mentions` and one of the remedies. Returns its text."""
    with pytest.raises(DataError) as caught:
        action()
    text = str(caught.value)
    assert [str(mention) for mention in mentions if str(mention) not in text] == []
    assert any(remedy in text for remedy in remedies), text
    assert "\n" not in text
    return text


@contextmanager
def no_file_is_opened() -> Iterator[None]:
    """Let this process open no more files inside, as one that has reached its limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def reseal(folder: Path) -> None:
    """Make the manifest state the present size and hash of each shard, and remove the index."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        data = (folder / shard["name"]).read_bytes()
        shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for index in folder.glob("index-*.npy"):
        index.unlink()


def rewrite_members(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Write a tar again, with the bytes of each member changed by a function. None drops the member."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            if (changed := change(name, data)) is not None:
                info = tarfile.TarInfo(name)
                info.size = len(changed)
                tar.addfile(info, io.BytesIO(changed))
