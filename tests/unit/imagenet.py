"""Generates a tiny ImageNet-1k in the layout in which the real one is published."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from data_pipelines.sources.imagenet import DEVKIT, META, TRAIN, TRUTH, VAL

WNIDS = ("n02123045", "n01440764", "n01443537")
"""The WordNet ids of ILSVRC2012_ID 1, 2, 3. Class indices follow the sorted ids, so they differ."""

HYPERNYM = "n00001740"


@dataclass(frozen=True)
class Planted:
    """The expected samples: for each key the class index and the bytes of the image."""

    classes: list[str]
    train: dict[str, tuple[int, bytes]]
    val: dict[str, tuple[int, bytes]]


def noise_image(number: int, image_format: str = "JPEG", size: int = 16) -> bytes:
    """Encode an image of noise that differs from number to number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format=image_format)
    return encoded.getvalue()


def tar_bytes(members: Mapping[str, bytes], mode: str = "w") -> bytes:
    """Pack members into a tar. The mode "w:gz" compresses it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def meta_mat(wnids: Sequence[str] = WNIDS) -> bytes:
    """Make meta.mat: the classes, numbered from 1, and then a hypernym of all of them, which is no class."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
    table = np.zeros((len(wnids) + 1, 1), [(field, object) for field in fields])
    for row, wnid in enumerate(wnids):
        table[row, 0] = (float(row + 1), wnid, f"animal {row}, beast", f"the beast {row}", 0.0, np.zeros((1, 0)), 0.0, 1300.0)
    children = np.arange(1.0, len(wnids) + 1)[None]
    table[-1, 0] = (float(len(wnids) + 1), HYPERNYM, "entity", "that which is", float(len(wnids)), children, 1.0, 0.0)
    file = io.BytesIO()
    savemat(file, {"synsets": table})
    return file.getvalue()


def devkit(wnids: Sequence[str], truth: str) -> bytes:
    """Pack a development kit. truth: the lines of the validation ground truth."""
    return tar_bytes({META: meta_mat(wnids), TRUTH: truth.encode()}, "w:gz")


def plant_imagenet(folder: Path, wnids: Sequence[str] = WNIDS, per_class: int = 3, validation: int = 5) -> Planted:
    """Write the three archives into a folder: `per_class` training images of each class and `validation` validation images."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = sorted(wnids)
    images = {
        wnid: {f"{wnid}_{number}.JPEG": noise_image(100 * place + number) for number in range(per_class)}
        for place, wnid in enumerate(classes)
    }
    ids = [1 + number % len(wnids) for number in range(validation)]
    val = {f"ILSVRC2012_val_{number:08d}.JPEG": noise_image(100_000 + number) for number in range(1, validation + 1)}
    (folder / TRAIN).write_bytes(tar_bytes({f"{wnid}.tar": tar_bytes(images[wnid]) for wnid in wnids}))
    (folder / VAL).write_bytes(tar_bytes(dict(reversed(val.items()))))  # the order differs from that of the ground truth
    (folder / DEVKIT).write_bytes(devkit(wnids, "".join(f"{number}\n" for number in ids)))
    return Planted(
        classes,
        {f"{wnid}/{Path(name).stem}": (label, data) for label, wnid in enumerate(classes) for name, data in images[wnid].items()},
        {
            f"{wnids[number - 1]}/{Path(name).stem}": (classes.index(wnids[number - 1]), data)
            for number, (name, data) in zip(ids, val.items(), strict=True)
        },
    )
