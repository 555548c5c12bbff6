"""Writes a data set like ImageNet for measuring loaders: photographs of scikit-image, cropped at random, in the usual sizes of ImageNet.

The time of a loader depends on the pixels and bytes of the images, not on what they show. Training images of ImageNet mostly have
500 pixels on their long side and 110 kB. Noise or flat colours of that size decode at another speed than photographs.
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
from data_pipelines.storage.passing_trouble import is_passing, unavailable

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
"""The colour photographs within the wheel of scikit-image, which would download any other. Each one is a class."""

SIZES = {(500, 375): 0.5, (375, 500): 0.16, (500, 333): 0.14, (333, 500): 0.06, (640, 480): 0.05, (800, 600): 0.02, (300, 225): 0.07}
"""The share of images for each width and height in pixels."""

LOWEST_QUALITY, HIGHEST_QUALITY = 95, 98
"""The range of JPEG qualities in percent. With the sharpening below, files have 110 kB on average, as those of ImageNet do."""

SHARPENED = ImageFilter.UnsharpMask(radius=1, percent=150, threshold=0)
"""Photo sites sharpen images that they reduce. Here it restores detail, because some small photographs are enlarged."""

SMALLEST_CROP = 0.6
"""The least side length of a crop, as a share of the largest window with the wanted proportions in the photograph."""

RECIPE = "photographs.json"
PER_JOB = 50
"""The number of images that a process makes at a time."""


def write_photographs(folder: Path, images: int, *, processes: int = 1, progress: Callable[[int], None] = lambda done: None) -> Path:
    """Write <folder>/train/<class>/<number>.jpg, unless the files exist already, and return <folder>/train.

    The same number always gives the same bytes.
    progress: it is called with the number of images done since its last call.
    Raises DataError if the folder holds anything else, UserError without scikit-image.
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
    """Write the recipe of the set into the folder, or check that the folder has the same one. Raises DataError if it has not."""
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
        if is_passing(error):
            raise unavailable(folder, error) from None
        raise DataError(f"{folder} cannot be used ({error}); choose another folder.") from None


def photographs() -> dict[str, np.ndarray]:
    """Return the photographs by name, as uint8 [H, W, 3]. Raises UserError without scikit-image."""
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
    """Make the image with this number from its photograph, and return it as JPEG."""
    random = np.random.default_rng(number)
    width, height = list(SIZES)[random.choice(len(SIZES), p=list(SIZES.values()))]
    largest = min(original.width / width, original.height / height)
    across, down = (side * largest * random.uniform(SMALLEST_CROP, 1) for side in (width, height))
    left, top = random.uniform(0, original.width - across), random.uniform(0, original.height - down)
    cropped = original.resize((width, height), Image.Resampling.LANCZOS, (left, top, left + across, top + down))
    return encode_jpeg(cropped.filter(SHARPENED), int(random.integers(LOWEST_QUALITY, HIGHEST_QUALITY + 1)))
