"""Decodes the samples of a part before they are written, and sorts out the damaged ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.formats.event_frames import decode_frames
from data_pipelines.formats.images import decode_image
from data_pipelines.formats.keys import is_valid_key
from data_pipelines.formats.sample import RawSample
from data_pipelines.prepare.options import Part, PrepareOptions
from data_pipelines.sources.base import LeftOut, Source
from data_pipelines.storage.passing_trouble import reading
from data_pipelines.storage.patience import patiently


class DecodedSample(NamedTuple):
    """A sample with its decoded image. `image` is None for event frames. `shrunk`: the image is smaller than in the source."""

    raw: RawSample
    image: Image.Image | None
    shrunk: bool


class DecodedSamples:
    """Iterates over the decoded samples of one part.

    A damaged sample is left out and added to `left_out`. With stop_at_bad it raises DataError instead. A sample that cannot be read
    now is waited for, and is never left out: UnavailableError ends the work, which goes on later.
    """

    def __init__(self, source: Source, part: Part, options: PrepareOptions) -> None:
        self.source, self.part, self.options = source, part, options
        self.left_out: list[LeftOut] = []

    def __iter__(self) -> Iterator[DecodedSample]:
        for index in map(int, self.part.samples):
            try:
                decoded = patiently(lambda index=index: self._decode(index), self.options.patience)  # type: ignore[misc]
            except DataError as error:
                if self.options.stop_at_bad:
                    remedy = "mend or remove it, or leave such files out: --on-bad-image leave-out"
                    raise DataError(f"{self.source.origin(index)}: {error}; {remedy}.") from None
                self.left_out.append(LeftOut(self.source.origin(index), str(error)))
                continue
            yield decoded

    def _decode(self, index: int) -> DecodedSample:
        raw = self._read(index)
        if not is_valid_key(raw.key):
            raise DataError(f"its name {raw.key!a} holds what no key can: control characters or bytes that are no UTF-8; rename it")
        if raw.extension == "npy":
            decode_frames(raw.data)
            return DecodedSample(raw, None, False)
        image = decode_image(raw.data)
        shrunk = shrink(image, self.options.encoding.short_side)
        return DecodedSample(raw, shrunk, shrunk is not image)

    def _read(self, index: int) -> RawSample:
        with reading(self.source.origin(index), was_there=True):
            return self.source[index]


def shrink(image: Image.Image, short_side: int | None) -> Image.Image:
    """Resize an image to this short side in pixels, and keep its proportions. Returns the same object if it is small enough."""
    short = min(image.size)
    if short_side is None or short <= short_side:
        return image
    width, height = (max(1, round(side * short_side / short)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
