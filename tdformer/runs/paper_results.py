"""Holds the results of the paper (arXiv 2505.15840), and finds those for the same network on the same data as some runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tdformer.config import BackboneConfig
from tdformer.runs.flat_config import Flat

PAPER = "arXiv 2505.15840"
TABLE_1 = f"{PAPER}, table 1"
SOURCES = {85.20: f"{TABLE_1}; 85.25 elsewhere in the paper"}


@dataclass(frozen=True)
class Reference:
    """One number of the paper."""

    network: str
    dataset: str
    image_size: int
    top1: float
    source: str
    parameters: str = ""


@dataclass(frozen=True)
class Published:
    """The results of a backbone with and without the top-down path on one data set."""

    backbone: BackboneConfig
    dataset: str
    classes: int
    time_steps: int
    location_pattern: str
    """A regular expression for data.train, of which only the letters and digits are compared."""
    rows: tuple[Reference, ...]


def _published() -> list[Published]:
    hst10 = BackboneConfig()
    hst4 = BackboneConfig(variant="cifar", embed_dims=384, num_heads=8, depths=(1, 1, 2))
    spikformer = BackboneConfig(family="spikformer", variant="cifar", embed_dims=384, num_heads=12, depths=(4,))
    hst2 = BackboneConfig(variant="dvs", embed_dims=256, num_heads=16, depths=(1, 1), mlp_ratio=1, in_channels=2)
    sdt2 = BackboneConfig(family="sdt", variant="cifar", pooling="0111", embed_dims=256, num_heads=8, depths=(2,), in_channels=2)

    def small(name: str, dataset: str, size: int, backbone: float, topdown: float, parameters: tuple[str, str] = ("", "")) -> Any:
        rows = zip((name, f"TDFormer, {name}"), (backbone, topdown), parameters, strict=True)
        return tuple(Reference(network, dataset, size, top1, PAPER, count) for network, top1, count in rows)

    imagenet = (
        *(("QKFormer HST-10-768", "64.96 M", size, top1) for size, top1 in ((224, 84.22), (288, 85.20), (384, 85.65))),
        *(("TDFormer HST-10-768, 1 block", "65.55 M", size, top1) for size, top1 in ((224, 85.37), (288, 86.29))),
        *(("TDFormer HST-10-768", "69.09 M", size, top1) for size, top1 in ((224, 85.57), (288, 86.43), (384, 86.83))),
    )
    of_imagenet = tuple(
        Reference(name, "ImageNet-1k", size, top1, SOURCES.get(top1, TABLE_1), count) for name, count, size, top1 in imagenet
    )
    counts = ("9.33 M", "9.92 M")
    return [
        Published(hst10, "ImageNet-1k", 1000, 4, "imagenet|ilsvrc", of_imagenet),
        Published(hst4, "CIFAR-10", 10, 4, "cifar10(?!0)", small("QKFormer HST-4-384", "CIFAR-10", 32, 96.18, 96.51)),
        Published(hst4, "CIFAR-100", 100, 4, "cifar100", small("QKFormer HST-4-384", "CIFAR-100", 32, 81.15, 81.45)),
        Published(spikformer, "CIFAR-10", 10, 4, "cifar10(?!0)", small("Spikformer-4-384", "CIFAR-10", 32, 94.73, 95.11, counts)),
        Published(spikformer, "CIFAR-100", 100, 4, "cifar100", small("Spikformer-4-384", "CIFAR-100", 32, 77.88, 77.99)),
        Published(hst2, "CIFAR10-DVS", 10, 16, "cifar10dvs", small("QKFormer HST-2-256", "CIFAR10-DVS", 128, 84.00, 85.83)),
        Published(sdt2, "DVS128 Gesture", 11, 16, "dvs128|dvsgesture", small("SDT-2-256", "DVS128 Gesture", 128, 97.98, 99.65)),
    ]


PUBLISHED = _published()


def matching_references(configs: Sequence[Flat]) -> list[Reference]:
    """Return the results with the network, the time steps, the data set and the image size of at least one of these runs.

    A data set is recognised by data.train and by the number of classes, because nothing else tells.
    """
    found: dict[Reference, None] = {}
    for published in PUBLISHED:
        sizes = {config.get("data.image_size") for config in configs if _fits(config, published)}
        found |= {row: None for row in published.rows if row.image_size in sizes}
    return list(found)


def _fits(config: Flat, published: Published) -> bool:
    if config.get("model.num_classes") != published.classes or config.get("model.time_steps") != published.time_steps:
        return False
    backbone = published.backbone.model_dump(mode="json", exclude={"drop_path", "samples_share_projection"})
    if any(config.get(f"model.backbone.{key}") != value for key, value in backbone.items()):
        return False
    return re.search(published.location_pattern, re.sub("[^a-z0-9]", "", str(config.get("data.train")).lower())) is not None
