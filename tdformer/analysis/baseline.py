"""Checks that a network and its baseline can be compared."""

from __future__ import annotations

from data_pipelines.errors import UserError
from tdformer.inference.networks import Network

UNKNOWN = "an unknown number of samples"


def check_comparable(network: Network, baseline: Network) -> list[str]:
    """Raise UserError unless both networks were trained on the same classes, at the same size, with the same time steps.

    Returns notes: what may make the comparison unfair.
    """
    if baseline.classes != network.classes:
        raise UserError(
            f"baseline {baseline.path} was trained on other classes than {network.path} ({len(baseline.classes)} and "
            f"{len(network.classes)}, or other names); give a baseline of the same data."
        )
    for what, own, other in (
        ("a training set of", _samples(network), _samples(baseline)),
        ("images of size", network.data.image_size, baseline.data.image_size),
        ("a number of time steps of", network.model.time_steps, baseline.model.time_steps),
        ("a number of input channels of", network.model.config.backbone.in_channels, baseline.model.config.backbone.in_channels),
    ):
        if own != other and UNKNOWN not in (own, other):
            raise UserError(
                f"baseline {baseline.path} has {what} {other}, and {network.path} has {own}; give a baseline that has the same."
            )
    if network.trained_on and baseline.trained_on and network.trained_on != baseline.trained_on:
        return [f"{baseline.path} was trained on other samples than {network.path}, or on the same ones in another order"]
    return []


def _samples(network: Network) -> str:
    return f"{network.trained_on[0]:,} samples" if network.trained_on else UNKNOWN
