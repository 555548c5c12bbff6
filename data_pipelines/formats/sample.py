"""TODO."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RawSample:
    """One sample as it is stored: its key (unique, without dots), file extension, encoded bytes and class index.

    extension: "jpg" or "png" for an image, "npy" for event frames (an array [T, 2, H, W]).
    """

    key: str
    extension: str
    data: bytes
    label: int
