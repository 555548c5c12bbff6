"""A set like ImageNet for measuring loaders: scikit-image's photographs, cropped at random and stored at ImageNet's usual sizes.

How long a loader takes depends on the images' pixels and bytes, not on what they show. ImageNet's training images are mostly
500 pixels on their long side and 110 kB each; noise or flat colours of that size decode at another speed than photographs do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from data_pipelines.errors import DataError, UserError
from data_pipelines.formats.images import encode_jpeg
from data_pipelines.processes import map_unordered
from data_pipelines.storage.files import replace_file

NAMES = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "immunohistochemistry",
    "motorcycle_left",
    "motorcycle_right",
    "retina",
    "rocket",
)
"""The colour photographs within scikit-image's wheel; others it would download. Each is a class."""

SIZES = {(500, 375): 0.5, (375, 500): 0.16, (500, 333): 0.14, (333, 500): 0.06, (640, 480): 0.05, (800, 600): 0.02, (300, 225): 0.07}
"""Width and height in pixels, and the share of the images that have them."""

LOWEST_QUALITY, HIGHEST_QUALITY = 95, 98
"""Of the JPEGs, in percent: with the sharpening below, such that the files are on average as long as ImageNet's, 110 kB."""

SHARPENED = ImageFilter.UnsharpMask(radius=1, percent=150, threshold=0)
"""As photo sites do after reducing; scikit-image's photographs are small, and enlarging some of them leaves less detail."""

SMALLEST_CROP = 0.6
"""Share of the photograph's largest window of the wanted proportions, by length."""

RECIPE = "photographs.json"
PER_JOB = 50
"""Images that a process makes at a time."""


def write_photographs(folder: Path, images: int, *, processes: int = 1, progress: Callable[[int], None] = lambda done: None) -> Path:
    """Write <folder>/train/<class>/<number>.jpg, or find that they are there; gives <folder>/train. The same number gives the same bytes.

    progress is called with the number of images done since its last call. Raises DataError if the folder holds anything else.
    """
    train, unfinished = folder / "train", folder / "train.unfinished"
    _claim(folder, {"images": images, "sizes": [*map(list, SIZES)], "quality": [LOWEST_QUALITY, HIGHEST_QUALITY], "classes": list(NAMES)})
    if train.exists():
        progress(images)
        return train
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in NAMES:
        (unfinished / name).mkdir(parents=True)
    jobs = [range(start, min(start + PER_JOB, images)) for start in range(0, images, PER_JOB)]
    for done in map_unordered(_write_some, (photographs(), unfinished), jobs, processes):
        progress(done)
    unfinished.rename(train)
    return train


def _claim(folder: Path, recipe: dict[str, object]) -> None:
    """Note in the folder what it is for."""
    path = folder / RECIPE
    try:
        if path.exists():
            if json.loads(path.read_text()) != recipe:
                raise DataError(f"{folder} holds another generated set; remove it, or choose another folder.")
            return
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise DataError(f"{folder} holds other files; choose a new or an empty folder.")
        replace_file(path, lambda partial: partial.write_text(json.dumps(recipe)))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be used ({error}); choose another folder.") from None


def photographs() -> dict[str, np.ndarray]:
    """uint8 [H, W, 3] by name."""
    try:
        from skimage import data
    except ImportError as error:
        raise UserError(f"photographs come from scikit-image ({error}); install it with: pip install 'tdformer[bench]'") from None
    left, right, _ = data.stereo_motorcycle()
    motorcycle = {"motorcycle_left": left, "motorcycle_right": right}
    return {name: motorcycle[name] if name in motorcycle else getattr(data, name)() for name in NAMES}


def _write_some(shared: tuple[dict[str, np.ndarray], Path], numbers: range) -> int:
    originals, folder = shared
    for number in numbers:
        name = NAMES[number % len(NAMES)]
        (folder / name / f"{number:06d}.jpg").write_bytes(_jpeg(Image.fromarray(originals[name]), number))
    return len(numbers)


def _jpeg(original: Image.Image, number: int) -> bytes:
    """The number-th image of the set, made from its photograph."""
    random = np.random.default_rng(number)
    width, height = list(SIZES)[random.choice(len(SIZES), p=list(SIZES.values()))]
    largest = min(original.width / width, original.height / height)
    across, down = (side * largest * random.uniform(SMALLEST_CROP, 1) for side in (width, height))
    left, top = random.uniform(0, original.width - across), random.uniform(0, original.height - down)
    cropped = original.resize((width, height), Image.Resampling.LANCZOS, (left, top, left + across, top + down))
    return encode_jpeg(cropped.filter(SHARPENED), int(random.integers(LOWEST_QUALITY, HIGHEST_QUALITY + 1)))
