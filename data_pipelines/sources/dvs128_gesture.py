"""Reads the event data set DVS128 Gesture."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.sources.base import Source
from data_pipelines.sources.event_source import EventSource
from data_pipelines.sources.spikingjelly_frames import import_spikingjelly_module, integrate_frames

GESTURES = (
    "hand_clapping",
    "right_hand_wave",
    "left_hand_wave",
    "right_arm_clockwise",
    "right_arm_counter_clockwise",
    "left_arm_clockwise",
    "left_arm_counter_clockwise",
    "arm_roll",
    "air_drums",
    "air_guitar",
    "other_gestures",
)
"""The gestures in the order of gesture_mapping.csv, which numbers them from 1. spikingjelly's class folders count from 0."""


def open_dvs128_gesture(root: Path, time_steps: int) -> dict[str, Source]:
    """Open `train` and `val` (the published test trials). time_steps: frames per sample.

    Class indices are those of spikingjelly, which sorts the folders 0 … 10 as text: 0, 1, 10, 2, …
    Raises DataError if downloads are missing or damaged.
    """
    gesture = import_spikingjelly_module("dvs128_gesture").DVS128Gesture

    def split(train: bool) -> EventSource:
        dataset = integrate_frames(gesture, root, time_steps, sorted(map(str, range(len(GESTURES)))), train=train)
        return EventSource(dataset.samples, [GESTURES[int(folder)] for folder in dataset.classes], time_steps)

    return {"train": split(True), "val": split(False)}
