"""The samples of a prepared data set, corrupted in one of 19 ways: a suite as CIFAR-10-C and ImageNet-C are, of any data set.

The corruptions are those of Hendrycks and Dietterich (2019), by the package imagecorruptions-imaug, which the extra `corrupt` installs.
"""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np
from PIL import Image

from data_pipelines.errors import UserError
from data_pipelines.formats.corruption_kinds import KINDS, SEVERITIES
from data_pipelines.formats.images import encode_png
from data_pipelines.formats.sample import RawSample
from data_pipelines.loading.dataset import DataSet
from data_pipelines.loading.rng import fork_rng, seed_rng
from data_pipelines.sources.base import LeftOut

WITH_OWN_GENERATOR = ("impulse_noise", "glass_blur")
"""Kinds that do not draw from NumPy's global generator, and take a seed."""
SMALLEST = 32
"""Pixels of the short side. Some corruptions are not defined for smaller images, such as the digits of MNIST."""


class CorruptedSource:
    """The images of a data set with one corruption at one severity, as PNG. Keys, labels and their order stay. Small images are enlarged.

    The pixels depend on the seed, the sample's key, the kind and the severity alone. Raises UserError for an unknown kind or severity, for
    event frames, and if the extra is not installed.

    samples: how many images are taken, at equal distances in storage order. None: all.
    """

    def __init__(self, data: DataSet, kind: str, severity: int, seed: int, samples: int | None = None) -> None:
        if kind not in KINDS:
            raise UserError(f"there is no corruption {kind}; the kinds are {', '.join(KINDS)}.")
        if severity not in SEVERITIES:
            raise UserError(f"there is no severity {severity}; give some of 1 to 5.")
        if data.manifest.kind != "images":
            raise UserError(f"{data.location} holds event frames; corruptions are of images.")
        check_installed()
        if samples is not None and samples > len(data):
            raise UserError(f"{data.location} holds {len(data)} samples, {samples} cannot be taken; give fewer.")
        self.data, self.kind, self.severity, self.seed, self.samples = data, kind, severity, seed, samples or len(data)
        self.ignored_files = 0
        self.left_out: list[LeftOut] = []

    @property
    def classes(self) -> list[str]:
        return self.data.classes

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> RawSample:
        from imagecorruptions import corrupt

        index = self._taken(index)
        key = self.data.index.key_of(index)
        pixels = _rgb_and_large_enough(np.asarray(self.data.read(index)))
        with fork_rng():
            seed_rng(*self._words, _word(key))
            own = {"seed": int(np.random.randint(2**31))} if self.kind in WITH_OWN_GENERATOR else {}
            corrupted = corrupt(pixels, severity=self.severity, corruption_name=self.kind, **own)
        return RawSample(key, "png", encode_png(np.asarray(corrupted, np.uint8)), self.data.index.label_of(index))

    def origin(self, index: int) -> str:
        return self.data.describe(self._taken(index))

    def fingerprint(self) -> str:
        taken = "" if self.samples == len(self.data) else f" {self.samples}"
        return hashlib.sha256(f"{self.data.digest()} {self.kind} {self.severity} {self.seed}{taken}".encode()).hexdigest()

    def _taken(self, index: int) -> int:
        return index * len(self.data) // self.samples

    @cached_property
    def _words(self) -> tuple[int, int, int]:
        return self.seed, _word(self.kind), self.severity


def _rgb_and_large_enough(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 [H, W, 3] of grey or RGB pixels. A short side below SMALLEST is enlarged to it, bicubically."""
    image = Image.fromarray(pixels).convert("RGB")
    if (scale := SMALLEST / min(image.size)) > 1:
        width, height = (max(round(side * scale), SMALLEST) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def check_installed() -> None:
    """Raise UserError unless the package of the corruptions is there."""
    try:
        import imagecorruptions  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the corruptions cannot be loaded ({error}); install them: pip install --constraint constraints.txt -e '.[corrupt]'"
        ) from None


def _word(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "big")
