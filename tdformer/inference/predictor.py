"""Predictor: names the classes of images with a trained network.

It needs nothing of the training system: no DeepSpeed, no MLflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.formats.event_frames import NPY_MAGIC, decode_frames
from data_pipelines.formats.images import Pixels, decode_image
from data_pipelines.loading.single_images import SingleImages
from data_pipelines.storage.passing_trouble import read_error
from tdformer.inference.networks import Network, load_network
from tdformer.models.autocast import autocast

Readable = str | Path | bytes | Image.Image | np.ndarray
"""What an image may be given as: a path of a JPEG or PNG file, the bytes of one, a Pillow image, or uint8 [H, W, 3].

Event frames: a path of an .npy file, the bytes of one, or an array of counts [T, 2, H, W]."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one image."""

    classes: list[str]
    """The most likely classes, the likeliest first."""
    probabilities: list[float]
    """Their probabilities, from 0 to 1."""
    by_segment: list[str]
    """The likeliest class after each segment. The last is the answer, and the others were found before feedback."""


class Predictor:
    """A trained network and what it needs to answer: its classes, and how its images are made."""

    def __init__(self, network: Network, device: torch.device | str | None = None) -> None:
        """device: None takes a GPU if there is one."""
        self.network = network
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = network.model.to(self.device).eval()
        self.classes = network.classes
        self.images = SingleImages(network.data, events=self.model.config.backbone.in_channels == 2)

    def predict(self, images: Readable | Sequence[Readable], top: int = 5, batch: int = 32) -> list[Prediction]:
        """Answer images, in their order. Raises DataError, naming the image, if one of them cannot be read or is none.

        top: the number of classes in an answer. batch: images per forward pass; it changes no answer, except by rounding.
        """
        many = images if isinstance(images, Sequence) and not isinstance(images, str | bytes) else [images]
        return list(self.answers((self.tensor(image) for image in many), top, batch))

    def answers(self, tensors: Iterable[torch.Tensor], top: int, batch: int) -> Iterator[Prediction]:
        """Yield the answers to images that `tensor` has made, a batch at a time."""
        remaining = iter(tensors)
        while some := list(islice(remaining, batch)):
            logits_NBK = self.logits(self.images.batch(some, self.device))
            probabilities_BK = logits_NBK[-1].float().softmax(1)
            best = probabilities_BK.topk(min(top, len(self.classes)))
            for values, indices, of_image_N in zip(best.values, best.indices, logits_NBK.argmax(2).T, strict=True):
                yield Prediction(self._names(indices), values.tolist(), self._names(of_image_N))

    @torch.no_grad()
    def logits(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the logits [segments, B, classes] of a normalised batch, at the precision of the network's own evaluation."""
        with autocast(self.device, self.network.precision):
            return self.model.forward_segments(images_BCHW.to(self.device))

    def tensor(self, image: Readable) -> torch.Tensor:
        """Read one image, resized and cropped. Raises DataError, which names it, if it cannot be used."""
        name = str(image) if isinstance(image, str | Path) else "the image"
        try:
            return self.images.tensor(self._pixels(image))
        except DataError as error:
            text = str(error).rstrip(".")
            raise DataError(text if name in text else f"{name}: {text}") from None

    def _pixels(self, image: Readable) -> Pixels:
        if isinstance(image, str | Path):
            image = _bytes_of(Path(image))
        if isinstance(image, bytes):
            if self.images.events != image.startswith(NPY_MAGIC):
                raise DataError(f"{self._wanted()}, and this is {'an image' if self.images.events else 'an array in .npy form'}")
            image = decode_frames(image) if self.images.events else decode_image(image)
        if isinstance(image, Image.Image) and not self.images.events:
            return image.convert("RGB")
        array = np.asarray(image)
        fits = array.shape[:2] == (self.model.time_steps, 2) if self.images.events else array.shape[2:] == (3,) and array.dtype == np.uint8
        if array.ndim != (4 if self.images.events else 3) or not fits:
            raise DataError(f"{self._wanted()}, got {array.dtype} {list(array.shape)}")
        return array

    def _wanted(self) -> str:
        if self.images.events:
            return f"this network takes event frames, counts [{self.model.time_steps}, 2, H, W]"
        return "this network takes RGB images, uint8 [H, W, 3]"

    def _names(self, indices: torch.Tensor) -> list[str]:
        return [self.classes[index] for index in indices.tolist()]


def load_predictor(path: str | Path, which: str = "best", averaged: bool = False, device: torch.device | str | None = None) -> Predictor:
    """Load a predictor from a run directory, a checkpoint or a weights folder.

    which: the checkpoint of a run directory, best or latest. averaged: take the averaged weights of a run with EMA. Raises UserError.
    """
    return Predictor(load_network(Path(path), which, averaged), device)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise read_error(path, error, f"{path} cannot be read ({error.strerror})") from None
