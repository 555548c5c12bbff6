"""Small generated data sets, shared by the tests of the data pipeline."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from data_pipelines.shards import ShardSet, write_shards
from data_pipelines.sources import RawSample

# A busy machine is no failure.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

SAMPLES, PER_SHARD = 23, 5
CLASSES = ("ant", "bee", "cat")


@dataclass(frozen=True)
class MemorySource:
    """Samples held in memory, as a Source."""

    samples: Sequence[RawSample]
    classes: Sequence[str] = CLASSES
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> RawSample:
        return self.samples[index]

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
    """23 pictures of noise (PNG, 20x20) in 3 classes."""
    return MemorySource([noise_sample(number) for number in range(SAMPLES)])


@pytest.fixture(scope="session")
def shared_folder(source: MemorySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` in five shards. Not to be changed."""
    folder = tmp_path_factory.mktemp("shared") / "train"
    write_shards(source, folder, samples_per_shard=PER_SHARD)
    return folder


@pytest.fixture(scope="session")
def shards(shared_folder: Path) -> ShardSet:
    return ShardSet.open(shared_folder)


def keys_of(shards: ShardSet) -> list[str]:
    return [shards.index.key_of(sample) for sample in range(len(shards))]


@pytest.fixture
def folder(shared_folder: Path, tmp_path: Path) -> Path:
    """A copy of the set that a test may damage."""
    return shutil.copytree(shared_folder, tmp_path / "train")


Prepare = Callable[[dict[int, RawSample]], Path]


@pytest.fixture
def prepare(source: MemorySource, tmp_path: Path) -> Prepare:
    """Write `source`, with some samples exchanged, into a folder of its own."""

    def prepare(exchanged: dict[int, RawSample]) -> Path:
        samples = [exchanged.get(number, sample) for number, sample in enumerate(source.samples)]
        write_shards(MemorySource(samples), tmp_path / "train", samples_per_shard=PER_SHARD)
        return tmp_path / "train"

    return prepare


def reseal(folder: Path) -> None:
    """Make the manifest state size and hash of the shards as they are now, and forget the index."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        data = (folder / shard["name"]).read_bytes()
        shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "index.npz").unlink()


def rewrite_members(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Write a tar again with each member's bytes changed by a function; None drops the member."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            if (changed := change(name, data)) is not None:
                info = tarfile.TarInfo(name)
                info.size = len(changed)
                tar.addfile(info, io.BytesIO(changed))
