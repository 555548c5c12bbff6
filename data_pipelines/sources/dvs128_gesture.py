"""TODO."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.sources.base import Source
from data_pipelines.sources.events import EventSource
from data_pipelines.sources.spikingjelly_frames import _integrated, spikingjelly_datasets

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
"""As the set's gesture_mapping.csv numbers them from 1, and spikingjelly's class folders from 0."""


def open_dvs128_gesture(root: Path, time_steps: int) -> dict[str, Source]:
    """`train` and `val` (the published test trials) of DVS128 Gesture.

    Class indices are spikingjelly's, which sorts the folders 0 … 10 as words: 0, 1, 10, 2, …
    Raises DataError if downloads are missing or damaged.
    """
    gesture = spikingjelly_datasets("dvs128_gesture").DVS128Gesture

    def split(train: bool) -> EventSource:
        dataset = _integrated(gesture, root, time_steps, sorted(map(str, range(len(GESTURES)))), train=train)
        return EventSource(dataset.samples, [GESTURES[int(folder)] for folder in dataset.classes], time_steps)

    return {"train": split(True), "val": split(False)}
