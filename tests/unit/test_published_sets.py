"""Tests CIFAR, the corruption suites and the event data sets, generated in their published formats.

Files that are not as published are refused in one sentence, and nothing that a pickle names is run.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import re
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import UnavailableError
from data_pipelines.sources.base import Source
from data_pipelines.sources.cifar import open_cifar
from data_pipelines.sources.cifar10_c import CIFAR10_CLASSES, open_cifar10_c
from data_pipelines.sources.cifar10_dvs import open_cifar10_dvs
from data_pipelines.sources.cifar_archive import CIFAR10, CIFAR100, CifarArchive
from data_pipelines.sources.dvs128_gesture import GESTURES, open_dvs128_gesture
from data_pipelines.sources.event_source import EventSource
from data_pipelines.sources.imagenet_c import open_imagenet_c
from data_pipelines.sources.layouts import open_splits
from data_pipelines.sources.spikingjelly_frames import import_spikingjelly_module
from tests.unit.conftest import error_of as sentence_of

error_of = partial(sentence_of, remedies=("download", "prepare again", "expected", "remove", "give "))


def pixels_of(source: Source, index: int) -> np.ndarray:
    sample = source[index]
    assert sample.extension == "png"
    return np.asarray(Image.open(io.BytesIO(sample.data)))


def labels_of(source: Source) -> list[int]:
    return [source[index].label for index in range(len(source))]


def check_protocol(source: Source) -> None:
    """Check a source: its keys are unique and without dots, every sample has an origin, and a pickled copy is the same source."""
    keys = [source[index].key for index in range(len(source))]
    assert len(set(keys)) == len(keys) > 0
    assert not any("." in key for key in keys)
    assert len({source.origin(index) for index in range(len(source))}) == len(keys)
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[index] for index in range(len(copy))] == [source[index] for index in range(len(source))]
    assert copy.fingerprint() == source.fingerprint()
    assert source.ignored_files == 0


# --- CIFAR -------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes protocol 2 as Python 2 did. Byte strings and the names of types were both plain strings there."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]  # noqa: RUF012

    def save_string(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        size = b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))
        self.write(size + data)

    dispatch[bytes] = dispatch[str] = save_string


def python2_pickle(content: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def noise(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def batch_of(images_NHWC: np.ndarray, labels: list[int], published: CifarArchive) -> dict[bytes, object]:
    content: dict[bytes, object] = {
        b"data": images_NHWC.transpose(0, 3, 1, 2).reshape(len(images_NHWC), 3072),
        published.labels: labels,
        b"filenames": [f"leptodactylus_pipiens_s_{number:06d}.png".encode() for number in range(len(labels))],
        b"batch_label": b"training batch 1 of 5",
    }
    return content | ({b"coarse_labels": [label // 5 for label in labels]} if published is CIFAR100 else {})


def labels_for(member: int, classes: int, images: int = 3) -> list[int]:
    return [(3 * member + number) % classes for number in range(images)]


def plant_cifar(root: Path, classes: int, images: int = 3) -> Path:
    """Write the unpacked folder, with so many images in each batch."""
    published = CIFAR10 if classes == 10 else CIFAR100
    folder = root / published.folder
    folder.mkdir(parents=True)
    for number, name in enumerate((*published.train, *published.val)):
        (folder / name).write_bytes(python2_pickle(batch_of(noise(images, number), labels_for(number, classes, images), published)))
    names = [f"class {number}".encode() for number in range(classes)]
    (folder / published.meta).write_bytes(python2_pickle({published.class_names: names, b"num_vis": 3072}))
    (folder / "readme.html").write_text("<meta>")
    return folder


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    return plant_cifar(tmp_path, 10)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_gives_the_pixels_and_labels_of_its_batches(tmp_path: Path, classes: int, packed: bool) -> None:
    folder = plant_cifar(tmp_path, classes)
    splits = open_cifar(pack(folder, tmp_path / "archive.tar.gz") if packed else folder, classes)
    batches = {"train": range(5 if classes == 10 else 1), "val": [5 if classes == 10 else 1]}
    assert list(splits) == ["train", "val"]
    for split, source in splits.items():
        expected = np.concatenate([noise(3, number) for number in batches[split]])
        assert [pixels_of(source, index).tolist() for index in range(len(source))] == expected.tolist()
        assert labels_of(source) == [label for number in batches[split] for label in labels_for(number, classes)]
        assert source.classes == [f"class {number}" for number in range(classes)]
        check_protocol(source)


def test_the_origin_of_a_cifar_image_is_its_batch_and_row(cifar10: Path) -> None:
    train = open_cifar(cifar10, 10)["train"]
    assert [train.origin(0), train.origin(3), train.origin(14)] == [
        f"{cifar10}/data_batch_1 image 0",
        f"{cifar10}/data_batch_2 image 0",
        f"{cifar10}/data_batch_5 image 2",
    ]


def test_the_fingerprint_of_cifar_follows_pixels_and_labels(cifar10: Path) -> None:
    found = {open_cifar(cifar10, 10)[split].fingerprint() for split in ("train", "val")}
    for images, labels in ((noise(3, 5), [5, 6, 8]), (noise(3, 6), labels_for(5, 10))):
        (cifar10 / "test_batch").write_bytes(python2_pickle(batch_of(images, labels, CIFAR10)))
        found.add(open_cifar(cifar10, 10)["val"].fingerprint())
    assert len(found) == 4


def test_fortran_order_is_read_as_it_is_meant(cifar10: Path) -> None:
    batch = batch_of(noise(3, 5), [1, 2, 3], CIFAR10)
    (cifar10 / "test_batch").write_bytes(python2_pickle(batch | {b"data": np.asfortranarray(batch[b"data"])}))
    assert pixels_of(open_cifar(cifar10, 10)["val"], 2).tolist() == noise(3, 5)[2].tolist()


class Malicious:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize("packed", [True, False])
def test_a_pickle_that_runs_a_command_is_refused_and_not_run(tmp_path: Path, cifar10: Path, packed: bool) -> None:
    planted = Malicious(os.system, f"touch {tmp_path}/run")
    (cifar10 / "data_batch_3").write_bytes(python2_pickle({b"data": planted}))
    pickle.loads((cifar10 / "data_batch_3").read_bytes())
    (tmp_path / "run").unlink()  # unpickled by Python itself, this pickle runs a command
    path = pack(cifar10, tmp_path / "archive.tar.gz") if packed else cifar10
    error_of(lambda: open_cifar(path, 10), path, "data_batch_3", f"{os.system.__module__}.system")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "function", [eval, getattr, np.fromfile, np.load, np.frombuffer, shutil.rmtree], ids=lambda function: function.__name__
)
def test_whatever_else_a_pickle_names_is_refused(cifar10: Path, function: Callable[..., object]) -> None:
    (cifar10 / "batches.meta").write_bytes(python2_pickle([Malicious(function, "1")]))
    error_of(lambda: open_cifar(cifar10, 10), cifar10 / "batches.meta", f".{function.__name__}", "nothing of it was run")


def test_an_array_of_objects_is_refused(cifar10: Path) -> None:
    (cifar10 / "test_batch").write_bytes(python2_pickle({b"data": np.array([[None, "x"]], dtype=object), b"labels": [1]}))
    error_of(lambda: open_cifar(cifar10, 10), cifar10 / "test_batch", "O8", "uint8")


def test_a_type_whose_state_declares_objects_to_be_bytes_is_refused(cifar10: Path) -> None:
    """NumPy would take these bytes for the addresses of objects."""
    dtype = b"cnumpy\ndtype\n(U\x02O8I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I1\nI1\nt" + dtype + b"I00\nU\x08AAAAAAAAtb"
    (cifar10 / "test_batch").write_bytes(b"}U\x04data" + array + b"s.")
    error_of(lambda: open_cifar(cifar10, 10), cifar10 / "test_batch", "O8", "uint8")


GOOD = noise(3, 5).reshape(3, 3072)


@pytest.mark.parametrize(
    ("change", "mention"),
    [
        ({b"data": GOOD.astype(np.int16)}, "i2"),
        ({b"data": GOOD[:, :3071]}, "[3, 3071]"),
        ({b"data": GOOD.reshape(-1)}, "[9216]"),
        ({b"data": None}, "no array"),
        ({b"data": GOOD[:2]}, "2 integers"),
        ({b"labels": [1, 2]}, "3 integers"),
        ({b"labels": [1, 2, 3.0]}, "3 integers"),
        ({b"labels": [1, 2, True]}, "3 integers"),
        ({b"labels": None}, "3 integers"),
        ({b"labels": [1, 2, 10]}, "label 10"),
        ({b"labels": [1, 2, -1]}, "label -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_batch_that_is_not_as_published_is_named(cifar10: Path, change: dict[bytes, object], mention: str) -> None:
    (cifar10 / "test_batch").write_bytes(python2_pickle(batch_of(noise(3, 5), [1, 2, 3], CIFAR10) | change))
    error_of(lambda: open_cifar(cifar10, 10), cifar10 / "test_batch", mention)


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x02}q", b"\x80\x02N.", b"\x80\x02]q\x00r\xff\xff\xff\xff.", b"}U\x04data0b."])
def test_a_damaged_pickle_is_named(cifar10: Path, data: bytes) -> None:
    (cifar10 / "data_batch_2").write_bytes(data)
    error_of(lambda: open_cifar(cifar10, 10), cifar10 / "data_batch_2")


def test_any_cut_through_a_batch_is_named(cifar10: Path) -> None:
    whole = (cifar10 / "test_batch").read_bytes()
    for size in range(0, len(whole), 97):
        (cifar10 / "test_batch").write_bytes(whole[:size])
        error_of(lambda: open_cifar(cifar10, 10), cifar10 / "test_batch")


@pytest.mark.parametrize("names", [None, [b"one"], ["text"] * 10 + [b"more"], [1] * 10])
def test_a_meta_file_without_the_classes_is_named(cifar10: Path, names: object) -> None:
    (cifar10 / "batches.meta").write_bytes(python2_pickle({b"label_names": names}))
    error_of(lambda: open_cifar(cifar10, 10), cifar10 / "batches.meta", "10 classes")


@pytest.mark.parametrize("packed", [True, False])
def test_a_missing_batch_is_named(tmp_path: Path, cifar10: Path, packed: bool) -> None:
    (cifar10 / "data_batch_4").unlink()
    path = pack(cifar10, tmp_path / "archive.tar.gz") if packed else cifar10
    error_of(lambda: open_cifar(path, 10), path, "data_batch_4", "cifar-10-python.tar.gz")


def test_the_other_cifar_is_not_taken_for_this_one(tmp_path: Path) -> None:
    archive = pack(plant_cifar(tmp_path, 100), tmp_path / "cifar-100-python.tar.gz")
    error_of(lambda: open_cifar(archive, 10), archive, "data_batch_1", "cifar-10-python.tar.gz")


def test_a_damaged_archive_is_named(tmp_path: Path, cifar10: Path) -> None:
    archive = pack(cifar10, tmp_path / "cifar-10-python.tar.gz")
    whole = archive.read_bytes()
    for damaged in (b"", b"no archive", whole[: len(whole) // 2], gzip.compress(b"no tar"), whole[:5000] + bytes(200) + whole[5200:]):
        archive.write_bytes(damaged)
        error_of(lambda: open_cifar(archive, 10), archive)


# --- CIFAR-10-C --------------------------------------------------------------------------------------------

CORRUPTIONS = ("gaussian_noise", "fog")
PER_SEVERITY = 4


@pytest.fixture
def cifar10_c(tmp_path: Path) -> Path:
    """A folder with two corruptions of four images."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for number, name in enumerate(CORRUPTIONS):
        np.save(folder / f"{name}.npy", noise(5 * PER_SEVERITY, number))
    np.save(folder / "labels.npy", np.tile(np.array([3, 8, 0, 9], np.uint8), 5))
    return folder


def test_cifar10_c_gives_a_source_per_corruption_and_severity(cifar10_c: Path) -> None:
    sources = open_cifar10_c(cifar10_c)
    assert sorted(sources) == sorted(f"{name}-{severity}" for name in CORRUPTIONS for severity in range(1, 6))
    for number, name in enumerate(CORRUPTIONS):
        for severity in range(1, 6):
            source = sources[f"{name}-{severity}"]
            expected = noise(5 * PER_SEVERITY, number)[(severity - 1) * PER_SEVERITY : severity * PER_SEVERITY]
            assert [pixels_of(source, index).tolist() for index in range(len(source))] == expected.tolist()
            assert labels_of(source) == [3, 8, 0, 9]
            assert tuple(source.classes) == CIFAR10_CLASSES
            check_protocol(source)
    assert sources["fog-2"].origin(1) == f"{cifar10_c}/fog.npy row 5"
    assert len({source.fingerprint() for source in sources.values()}) == len(sources)


def test_a_corruption_is_pickled_without_its_pixels(cifar10_c: Path) -> None:
    source = open_cifar10_c(cifar10_c)["fog-1"]
    assert len(source[0].data) > 1000
    assert len(pickle.dumps(source)) < 1000


@pytest.mark.parametrize(
    ("array", "mentions"),
    [
        (noise(20, 0).astype(np.float32), ["fog.npy", "float32"]),
        (noise(20, 0)[:, :, :, :1], ["fog.npy", "[20, 32, 32, 1]"]),
        (noise(15, 0), ["fog.npy", "15 images", "20 labels"]),
        (np.array([None], dtype=object), ["fog.npy"]),
    ],
    ids=["dtype", "shape", "length", "objects"],
)
def test_an_array_that_is_not_as_published_is_named(cifar10_c: Path, array: np.ndarray, mentions: list[str]) -> None:
    np.save(cifar10_c / "fog.npy", array, allow_pickle=True)
    error_of(lambda: open_cifar10_c(cifar10_c), cifar10_c, *mentions)


@pytest.mark.parametrize(
    ("labels", "mention"),
    [
        (np.zeros(19, np.uint8), "multiple of 5"),
        (np.zeros(0, np.uint8), "multiple of 5"),
        (np.full(20, 10), "label 10"),
        (np.full(20, -1), "label -1"),
        (np.zeros(20), "float64"),
        (np.zeros((20, 1), int), "[20, 1]"),
        (np.array([None] * 20), "labels.npy"),
    ],
)
def test_labels_that_are_not_as_published_are_named(cifar10_c: Path, labels: np.ndarray, mention: str) -> None:
    np.save(cifar10_c / "labels.npy", labels, allow_pickle=True)
    error_of(lambda: open_cifar10_c(cifar10_c), cifar10_c / "labels.npy", mention)


@pytest.mark.parametrize("content", [b"", b"no array", pickle.dumps([1]), None])
def test_a_file_that_is_no_array_is_named(cifar10_c: Path, content: bytes | None) -> None:
    path = cifar10_c / "fog.npy"
    path.write_bytes(path.read_bytes()[:9000] if content is None else content)
    error_of(lambda: open_cifar10_c(cifar10_c), path)


@pytest.mark.parametrize("missing", ["labels.npy", "*.npy", "[fg]*.npy"])
def test_a_folder_that_is_no_cifar10_c_is_named(cifar10_c: Path, missing: str) -> None:
    for path in cifar10_c.glob(missing):
        path.unlink()
    error_of(lambda: open_cifar10_c(cifar10_c), cifar10_c, "labels.npy")


# --- ImageNet-C --------------------------------------------------------------------------------------------


def plant_images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(1, number)[0]).save(root / name, format="JPEG")
    return root


@pytest.mark.parametrize("groups", [("noise/", "blur/"), ("", ""), ("noise/", "")])
def test_imagenet_c_gives_a_source_per_corruption_and_severity(tmp_path: Path, groups: tuple[str, str]) -> None:
    first, second = f"{groups[0]}shot_noise", f"{groups[1]}zoom_blur"
    names = (f"{first}/1/n02/a.JPEG", f"{first}/1/n01/b.JPEG", f"{first}/5/n02/a.JPEG", f"{second}/3/n03/a.JPEG")
    sources = open_imagenet_c(plant_images(tmp_path, *names))
    assert {name: labels_of(source) for name, source in sources.items()} == {
        "shot_noise-1": [0, 1],
        "shot_noise-5": [1],
        "zoom_blur-3": [2],
    }
    assert sources["shot_noise-1"][1].data == (tmp_path / names[0]).read_bytes()
    for source in sources.values():
        assert source.classes == ["n01", "n02", "n03"]
        check_protocol(source)


@pytest.mark.parametrize("name", ["n01/a.JPEG", "noise/n01/a.JPEG", "empty/"])
def test_a_folder_that_is_no_imagenet_c_is_named(tmp_path: Path, name: str) -> None:
    plant_images(tmp_path, "noise/shot_noise/1/n01/a.JPEG")
    (tmp_path / name).mkdir(parents=True) if name.endswith("/") else plant_images(tmp_path, name)
    error_of(lambda: open_imagenet_c(tmp_path), tmp_path / Path(name.removesuffix("a.JPEG")), "<severity>")


def test_an_empty_folder_and_a_file_are_no_imagenet_c(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for name in ("folder", "file"):
        error_of(lambda name=name: open_imagenet_c(tmp_path / name), tmp_path / name, "<severity>")


def test_the_same_corruption_in_two_groups_is_refused(tmp_path: Path) -> None:
    plant_images(tmp_path, "noise/fog/1/n01/a.JPEG", "weather/fog/1/n01/a.JPEG")
    error_of(lambda: open_imagenet_c(tmp_path), tmp_path / "noise/fog/1", tmp_path / "weather/fog/1", "remove one")


# --- layouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False])
def test_the_layouts_open_the_sets_and_are_recognised(tmp_path: Path, cifar10: Path, cifar10_c: Path, named: bool) -> None:
    cifar100 = plant_cifar(tmp_path, 100)
    imagenet_c = plant_images(tmp_path / "ImageNet-C", "noise/shot_noise/1/n01/a.JPEG")
    sets = [
        ("cifar10", cifar10, 10),
        ("cifar10", pack(cifar10, tmp_path / "cifar-10-python.tar.gz"), 10),
        ("cifar100", cifar100, 100),
        ("cifar100", pack(cifar100, tmp_path / "cifar-100-python.tar.gz"), 100),
        ("cifar10-c", cifar10_c, 10),
        ("imagenet-c", imagenet_c, 1),
    ]
    for layout, path, classes in sets:
        splits = open_splits(str(path), layout if named else "auto")
        assert {len(source.classes) for source in splits.values()} == {classes}


# --- event sets --------------------------------------------------------------------------------------------

Events = np.ndarray
"""Events as integers [N, 4]: time, x, y, polarity."""

TIME_STEPS = 4


def some_events(count: int, seed: int, start: int = 0) -> Events:
    """Make events in the order of time, beginning at `start`. The first half is in one pixel."""
    random = np.random.default_rng(seed)
    events = np.stack([start + np.arange(count), *random.integers(0, 128, (2, count)), random.integers(0, 2, count)], axis=1)
    events[: count // 2, 1:] = (5, 7, 1)
    return events


def integrate(events: Events) -> np.ndarray:
    """Compute the expected frames [T, 2, H, W]. Each frame has the same number of events, and the last also the remainder."""
    frames = np.zeros((TIME_STEPS, 2, 128, 128), int)
    for number, (_, x, y, polarity) in enumerate(events):
        frames[min(number // (len(events) // TIME_STEPS), TIME_STEPS - 1), polarity, y, x] += 1
    return frames


def aedat3(events: Events) -> bytes:
    """Encode an AEDAT 3 file: text lines, then packets of a 28-byte header and 8 bytes per event (address, time in microseconds)."""
    text = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
    special = struct.pack("<hhiiiiii", 0, 1, 8, 4, 0, 1, 1, 1) + bytes(8)  # an event of another type, which readers must skip
    packets = [special]
    for packet in np.array_split(events, 3):
        packets.append(struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(packet), len(packet), len(packet)))
        packets += [struct.pack("<II", x << 17 | y << 2 | polarity << 1 | 1, time) for time, x, y, polarity in packet.tolist()]
    return text + b"".join(packets)


def aedat2(events: Events) -> bytes:
    """Encode an AEDAT 2 file: text lines, then address and time of each event, big-endian. spikingjelly mirrors the image diagonally."""
    words = [(((127 - x) << 8 | (127 - y) << 1 | (1 - polarity)), time) for time, x, y, polarity in events.tolist()]
    return b"#!AER-DAT2.0\r\n# raw AE data\r\n" + b"".join(struct.pack(">II", *word) for word in words)


def publish(root: Path, files: dict[str, bytes], dataset_class: type, patch: pytest.MonkeyPatch) -> None:
    """Put files where the published downloads belong, and replace the published checksums by theirs."""
    (root / "download").mkdir(parents=True)
    for name, data in files.items():
        (root / "download" / name).write_bytes(data)
    published = [(name, f"https://example.org/{name}", hashlib.md5(data).hexdigest()) for name, data in files.items()]
    patch.setattr(dataset_class, "resource_url_md5", classmethod(lambda _: published))


GESTURE_EVENTS = 41


def recording(seed: int) -> tuple[bytes, bytes, list[Events]]:
    """Record all 11 gestures, with some events before, between and after. Returns the .aedat, its labels, and each gesture."""
    samples = [some_events(GESTURE_EVENTS, seed + label, start=1000 * (label + 1)) for label in range(11)]
    between = [some_events(10, seed + 50 + label, start=1000 * label + 500) for label in range(13)]
    events = np.concatenate([*samples, *between])
    rows = [f"{label + 1},{1000 * (label + 1)},{1000 * (label + 1) + GESTURE_EVENTS}" for label in range(11)]
    text = "\r\n".join(["class,startTime_usec,endTime_usec", *rows])
    return aedat3(events[np.argsort(events[:, 0])]), text.encode(), samples


def gesture_archive(recordings: dict[str, tuple[bytes, bytes, list[Events]]]) -> bytes:
    train, test = recordings
    members = {"trials_to_train.txt": f"{train}.aedat\n\n".encode(), "trials_to_test.txt": f"{test}.aedat\n".encode()}
    for name, (aedat, labels, _) in recordings.items():
        members |= {f"{name}.aedat": aedat, f"{name}_labels.csv": labels}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"DvsGesture/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


RECORDINGS = {"user01_led": recording(100), "user24_lab": recording(300)}


def gesture_files() -> dict[str, bytes]:
    return {"DvsGesture.tar.gz": gesture_archive(RECORDINGS), "gesture_mapping.csv": b"hand_clapping,1\n"}


@pytest.fixture
def gestures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    publish(tmp_path / "gesture", gesture_files(), import_spikingjelly_module("dvs128_gesture").DVS128Gesture, monkeypatch)
    return tmp_path / "gesture"


def frames_of(source: Source, index: int) -> np.ndarray:
    sample = source[index]
    assert sample.extension == "npy"
    return np.load(io.BytesIO(sample.data), allow_pickle=False)


@pytest.mark.slow
def test_dvs128_gesture_gives_the_frames_of_its_recordings(gestures: Path) -> None:
    splits = open_dvs128_gesture(gestures, TIME_STEPS)
    assert list(splits) == ["train", "val"]
    for source, (name, (_, _, samples)) in zip(splits.values(), RECORDINGS.items(), strict=True):
        folders = [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]  # spikingjelly sorts class folders as text
        assert [source[index].key for index in range(11)] == [f"{folder}/{name}_0" for folder in folders]
        assert labels_of(source) == list(range(11))
        assert source.classes == [GESTURES[folder] for folder in folders]
        for index, folder in enumerate(folders):
            frames = frames_of(source, index)
            assert frames.dtype == np.uint8
            assert np.array_equal(frames, integrate(samples[folder]))
        check_protocol(source)
    assert splits["train"].fingerprint() != splits["val"].fingerprint()
    shutil.rmtree(gestures / "download")  # the frames are made, so the downloads may go
    again = open_dvs128_gesture(gestures, TIME_STEPS)["train"]
    assert again.fingerprint() == splits["train"].fingerprint()
    assert open_dvs128_gesture(gestures, 2)["train"].fingerprint() != again.fingerprint()


MANY = 4000  # half of the events are in one pixel, which gives it more than 255 in a frame


def dvs_events(label: int, number: int) -> Events:
    return some_events(MANY if (label, number) == (3, 1) else 50 + number, 100 * label + number)


def zipped(label: int, name: str, samples: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        for number in range(samples):
            members.writestr(f"{name}/cifar10_{name}_{number}.aedat", aedat2(dvs_events(label, number)))
    return file.getvalue()


@pytest.fixture
def cifar10_dvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 12 samples of each class, but 11 ships."""
    files = {f"{name}.zip": zipped(label, name, 11 if name == "ship" else 12) for label, name in enumerate(CIFAR10_CLASSES)}
    publish(tmp_path / "cifar10-dvs", files, import_spikingjelly_module("cifar10_dvs").CIFAR10DVS, monkeypatch)
    return tmp_path / "cifar10-dvs"


@pytest.mark.slow
def test_cifar10_dvs_gives_frames_split_as_by_spikingjelly(cifar10_dvs: Path) -> None:
    splits = open_cifar10_dvs(cifar10_dvs, TIME_STEPS)
    dataset = import_spikingjelly_module("cifar10_dvs").CIFAR10DVS(
        str(cifar10_dvs), data_type="frame", frames_number=TIME_STEPS, split_by="number"
    )
    subsets = import_spikingjelly_module("utils").split_to_train_test_set(0.9, dataset, 10, random_split=False)
    assert {split: len(source) for split, source in splits.items()} == {"train": 9 * 11 + 10, "val": 10}
    for source, subset in zip(splits.values(), subsets, strict=True):
        assert [source.origin(index) for index in range(len(source))] == [dataset.samples[index][0] for index in subset.indices]
        assert labels_of(source) == [dataset.targets[index] for index in subset.indices]
        assert all(np.array_equal(frames_of(source, index), subset[index][0]) for index in range(len(source)))
        assert tuple(source.classes) == CIFAR10_CLASSES
        check_protocol(source)


def test_cifar10_dvs_integrates_the_events_of_its_files(cifar10_dvs: Path) -> None:
    splits = open_cifar10_dvs(cifar10_dvs, TIME_STEPS)
    by_key = {source[index].key: frames_of(source, index) for source in splits.values() for index in range(len(source))}
    for label, name in enumerate(CIFAR10_CLASSES):
        for number in (0, 1, 10):
            frames = by_key[f"{name}/cifar10_{name}_{number}"]
            assert np.array_equal(frames, integrate(dvs_events(label, number)))
            assert frames.dtype == (np.uint16 if (name, number) == ("cat", 1) else np.uint8)


def no_download(*_: object, **__: object) -> None:
    raise AssertionError("a download was tried")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_spikingjelly_module("base"), "download_url", no_download)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("layout", "mentions"),
    [("dvs128-gesture", ["DvsGesture.tar.gz from https://ibm"]), ("cifar10-dvs", ["airplane.zip from https://", "truck.zip"])],
)
def test_missing_downloads_are_named_with_their_addresses(tmp_path: Path, layout: str, mentions: list[str]) -> None:
    error_of(lambda: open_splits(str(tmp_path), layout, TIME_STEPS), tmp_path / "download", *mentions)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("offline")
def test_a_damaged_download_is_named_and_kept(gestures: Path) -> None:
    (gestures / "download" / "DvsGesture.tar.gz").write_bytes(b"half")
    error_of(lambda: open_dvs128_gesture(gestures, TIME_STEPS), gestures / "download" / "DvsGesture.tar.gz", "MD5")
    assert (gestures / "download" / "DvsGesture.tar.gz").read_bytes() == b"half"


@pytest.mark.usefixtures("offline")
def test_a_file_that_was_not_published_is_not_unpacked(cifar10_dvs: Path) -> None:
    (cifar10_dvs / "download" / "more.tar").write_bytes(b"")
    error_of(lambda: open_cifar10_dvs(cifar10_dvs, TIME_STEPS), cifar10_dvs / "download" / "more.tar", "none of the published")


@pytest.mark.usefixtures("offline")
def test_recordings_that_cannot_be_read_and_what_they_leave_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aedat, labels, samples = RECORDINGS["user01_led"]
    damaged = {"user01_led": (aedat[:-3], labels, samples), "user24_lab": RECORDINGS["user24_lab"]}
    publish(
        tmp_path / "set",
        {"DvsGesture.tar.gz": gesture_archive(damaged)},
        import_spikingjelly_module("dvs128_gesture").DVS128Gesture,
        monkeypatch,
    )
    error_of(lambda: open_dvs128_gesture(tmp_path / "set", TIME_STEPS), tmp_path / "set", "error: unpack", "but download/")
    marker = tmp_path / "set" / "events_np.building"
    error_of(lambda: open_dvs128_gesture(tmp_path / "set", TIME_STEPS), marker, "interrupted", "but download/")


@pytest.mark.usefixtures("offline")
def test_a_set_that_lacks_a_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """spikingjelly would number the remaining classes from 0."""
    publish(tmp_path / "set", {"cat.zip": zipped(3, "cat", 2)}, import_spikingjelly_module("cifar10_dvs").CIFAR10DVS, monkeypatch)
    error_of(lambda: open_cifar10_dvs(tmp_path / "set", TIME_STEPS), "['cat']", "airplane", tmp_path / "set")


@pytest.mark.parametrize("time_steps", [0, -1])
@pytest.mark.parametrize("layout", ["dvs128-gesture", "cifar10-dvs"])
def test_event_sets_need_a_time_step(tmp_path: Path, layout: str, time_steps: int) -> None:
    error_of(lambda: open_splits(str(tmp_path), layout, time_steps), time_steps, tmp_path)


def frames_file(folder: Path, **arrays: np.ndarray) -> EventSource:
    (folder / "cat").mkdir()
    np.savez(folder / "cat" / "a.b.npz", **arrays)
    return EventSource([(str(folder / "cat" / "a.b.npz"), 0)], ["cat"], TIME_STEPS)


FRAMES = np.zeros((TIME_STEPS, 2, 128, 128))


@pytest.mark.parametrize(("most", "dtype"), [(0, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_counts_are_stored_in_the_smallest_type_that_holds_them(tmp_path: Path, most: int, dtype: type) -> None:
    source = frames_file(tmp_path, frames=np.where(np.arange(128) == 9, most, FRAMES))
    frames = frames_of(source, 0)
    assert (frames.dtype, int(frames.max()), source[0].key) == (dtype, most, "cat/a_b")


@pytest.mark.parametrize(
    "frames",
    [FRAMES[:3], FRAMES.astype("S1"), FRAMES + 0.5, FRAMES - 1, FRAMES + 65536, FRAMES * np.nan, np.array([None], dtype=object)],
    ids=["shape", "text", "halves", "negative", "too many", "not a number", "objects"],
)
def test_frames_that_are_no_counts_are_named(tmp_path: Path, frames: np.ndarray) -> None:
    source = frames_file(tmp_path, frames=frames)
    error_of(lambda: source[0], source.origin(0))


def test_a_damaged_file_of_frames_is_named(tmp_path: Path) -> None:
    source = frames_file(tmp_path, frames=FRAMES)
    path = Path(source.origin(0))
    np.save(tmp_path / "plain.npy", FRAMES)
    for content in (b"", b"no zip", path.read_bytes()[:1000], pickle.dumps([1]), (tmp_path / "plain.npy").read_bytes()):
        path.write_bytes(content)
        error_of(lambda: source[0], path, "frames_number_")
        error_of(source.fingerprint, path)
    path.unlink()
    with pytest.raises(UnavailableError, match=re.escape(f"{path} cannot be read now")):
        source[0]
