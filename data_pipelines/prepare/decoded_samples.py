"""TODO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.formats.event_frames import decode_frames
from data_pipelines.formats.images import decode
from data_pipelines.formats.keys import is_storable
from data_pipelines.formats.sample import RawSample
from data_pipelines.prepare.journal import LeftOut
from data_pipelines.prepare.options import Part
from data_pipelines.sources.base import Source


class WholeSample(NamedTuple):
    """A sample as it came, its image (none for event frames), and whether that was reduced."""

    raw: RawSample
    image: Image.Image | None
    reduced: bool


class WholeSamples:
    """Iterates over a part's samples, decoded; those that are no whole image are left out, and noted in `left_out`."""

    def __init__(self, source: Source, part: Part, short_side: int | None, *, stop_at_bad: bool) -> None:
        self.source, self.part, self.short_side, self.stop_at_bad = source, part, short_side, stop_at_bad
        self.left_out: list[LeftOut] = []

    def __iter__(self) -> Iterator[WholeSample]:
        for index in map(int, self.part.samples):
            try:
                whole = self._checked(self.source[index])
            except DataError as error:
                if self.stop_at_bad:
                    remedy = "mend or remove it, or leave such files out: --on-bad-image leave-out"
                    raise DataError(f"{self.source.place(index)}: {error}; {remedy}.") from None
                self.left_out.append(LeftOut(self.source.place(index), str(error)))
                continue
            yield whole

    def _checked(self, raw: RawSample) -> WholeSample:
        if not is_storable(raw.key):
            raise DataError(f"its name {raw.key!a} holds what no key can: control characters or bytes that are no UTF-8; rename it")
        if raw.extension == "npy":
            decode_frames(raw.data)
            return WholeSample(raw, None, False)
        image = decode(raw.data)
        reduced = reduce_to(image, self.short_side)
        return WholeSample(raw, reduced, reduced is not image)


def reduce_to(image: Image.Image, short_side: int | None) -> Image.Image:
    """The image with its short side reduced to this length, its proportions kept; the same object if it is not longer."""
    short = min(image.size)
    if short_side is None or short <= short_side:
        return image
    width, height = (max(1, round(side * short_side / short)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
