"""Defines a sample as sources give it and shards store it: still encoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RawSample:
    """One encoded sample.

    key: unique in its data set, and without dots.
    extension: "jpg" or "png" for an image; "npy" for event frames, an array [T, 2, H, W].
    data: the bytes of the file.
    label: class index.
    """

    key: str
    extension: str
    data: bytes
    label: int
