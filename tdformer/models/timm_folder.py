"""What a weights folder says for timm: `timm.create_model("local-dir:FOLDER", pretrained=True)` reads it from config.json."""

from __future__ import annotations

from typing import Any

from tdformer.config import ModelConfig
from tdformer.models.registry import MODELS

SECTIONS = ("backbone", "feedback")


def timm_description(config: ModelConfig, origin: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of timm's config.json: a registered name, the arguments that make this network of it, and its input and classes.

    origin: what the weights folder says of its images and classes.
    """
    name, changes = nearest_name(config)
    image = origin.get("input") or {}
    size = (config.backbone.in_channels, image["image_size"], image["image_size"]) if image else None
    classes = origin.get("classes")
    of_input = {key: image[key] for key in ("mean", "std", "crop_pct") if key in image}
    return {
        "architecture": name,
        "num_classes": config.num_classes,
        "num_features": config.backbone.embed_dims,
        "model_args": changes,
        "pretrained_cfg": {
            "num_classes": config.num_classes,
            "classifier": "backbone.head",
            "custom_load": False,
            **({"input_size": size, "interpolation": origin.get("interpolation", "bicubic"), **of_input} if size else {}),
            **({"label_names": list(classes)} if classes else {}),
        },
    }


def nearest_name(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Return the registered network that differs least from a configuration, and the keys that differ, as create_model takes them."""
    candidates = {
        name: differing(named.config, config)
        for name, named in MODELS.items()
        if named.config.backbone.family == config.backbone.family and (named.config.feedback is None) is (config.feedback is None)
    }
    return min(candidates.items(), key=lambda item: len(item[1]))


def differing(named: ModelConfig, config: ModelConfig) -> dict[str, Any]:
    """Return the keys, without their sections, that make `config` of `named`."""
    return {key: value for key, value in flat(config).items() if flat(named)[key] != value}


def flat(config: ModelConfig) -> dict[str, Any]:
    """Return all keys of a network without their sections. Their names are different in all sections."""
    tree = config.model_dump(mode="json")
    sections = [tree.pop(section) for section in SECTIONS]
    return {key: value for section in (tree, *sections) if section is not None for key, value in section.items()}
