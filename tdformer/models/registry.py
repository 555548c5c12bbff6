"""Makes every network of the paper's tables by name, and registers the names with timm."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.models import PretrainedCfg, load_pretrained, register_model

from data_pipelines.config import DataConfig
from data_pipelines.errors import UserError
from tdformer.config import BackboneConfig, FeedbackConfig, ModelConfig, RecomputePolicy
from tdformer.config.yaml_io import checked, did_you_mean
from tdformer.models.tdformer import TDFormer
from tdformer.models.timm_arguments import keys_of, side_of


@dataclass(frozen=True)
class NamedModel:
    """Describes a network, with the input that it was published for."""

    config: ModelConfig
    image_size: int
    dataset: str
    paper: str = ""
    """Parameters and top-1 accuracy on its data set, as the paper states them."""


def _models() -> dict[str, NamedModel]:
    """Yield the backbones under their own names, and each as a TDFormer with feedback in all blocks of its last stage."""
    one_block = FeedbackConfig(blocks=(6,))  # the paper does not say which stage; the last one is our choice
    backbones = {
        "qkformer_hst10_384": (BackboneConfig(embed_dims=384, num_heads=6), 224, "ImageNet", "", ""),
        "qkformer_hst10_512": (BackboneConfig(embed_dims=512, num_heads=8), 224, "ImageNet", "", ""),
        "qkformer_hst10_768": (
            BackboneConfig(),
            224,
            "ImageNet",
            "64.96 M; 84.22 (224), 85.20 or 85.25 (288), 85.65 (384)",
            "69.09 M; 85.57 (224), 86.43 (288), 86.83 (384)",
        ),
        "spikformer8_512": (BackboneConfig(family="spikformer", embed_dims=512, num_heads=8, depths=(8,)), 224, "ImageNet", "", ""),
        "spikformer8_768": (BackboneConfig(family="spikformer", embed_dims=768, num_heads=12, depths=(8,)), 224, "ImageNet", "", ""),
        "sdt8_512": (BackboneConfig(family="sdt", embed_dims=512, num_heads=8, depths=(8,)), 224, "ImageNet", "", ""),
        "sdt8_768": (BackboneConfig(family="sdt", embed_dims=768, num_heads=8, depths=(8,)), 224, "ImageNet", "", ""),
        "qkformer_hst4_384": (
            BackboneConfig(variant="cifar", embed_dims=384, num_heads=8, depths=(1, 1, 2)),
            32,
            "CIFAR-10",
            "96.18; CIFAR-100 81.15",
            "96.51; CIFAR-100 81.45",
        ),
        "spikformer4_384": (
            BackboneConfig(family="spikformer", variant="cifar", embed_dims=384, num_heads=12, depths=(4,)),
            32,
            "CIFAR-10",
            "9.33 M; 94.73; CIFAR-100 77.88",
            "9.92 M; 95.11; CIFAR-100 77.99",
        ),
        "sdt2_256": (
            BackboneConfig(family="sdt", variant="cifar", embed_dims=256, num_heads=8, depths=(2,)),
            32,
            "CIFAR-10",
            "2.57 M",
            "2.69 M",
        ),
        "sdt2_512": (BackboneConfig(family="sdt", variant="cifar", embed_dims=512, num_heads=8, depths=(2,)), 32, "CIFAR-10", "", ""),
        "qkformer_hst2_256_cifar10dvs": (
            BackboneConfig(variant="dvs", embed_dims=256, num_heads=16, depths=(1, 1), mlp_ratio=1, in_channels=2),
            128,
            "CIFAR10-DVS",
            "84.00",
            "85.83",
        ),
        "qkformer_hst2_256_dvs128": (
            BackboneConfig(variant="dvs", embed_dims=256, num_heads=16, depths=(1, 1), in_channels=2),
            128,
            "DVS128",
            "",
            "",
        ),
        "sdt2_256_cifar10dvs": (
            BackboneConfig(family="sdt", variant="cifar", embed_dims=256, num_heads=8, depths=(2,), in_channels=2, erode=True),
            64,
            "CIFAR10-DVS",
            "",
            "",
        ),
        "sdt2_256_dvs128": (
            BackboneConfig(family="sdt", variant="cifar", pooling="0111", embed_dims=256, num_heads=8, depths=(2,), in_channels=2),
            128,
            "DVS128",
            "97.98",
            "99.65",
        ),
    }
    classes = {"ImageNet": 1000, "CIFAR-10": 10, "CIFAR10-DVS": 10, "DVS128": 11}
    models = {}
    for name, (backbone, image_size, dataset, of_backbone, of_tdformer) in backbones.items():
        sizes: dict[str, Any] = {
            "backbone": backbone,
            "num_classes": classes[dataset],
            "time_steps": 16 if backbone.in_channels == 2 else 4,
        }
        topdown = "tdformer_" + name.removeprefix("qkformer_")
        models[name] = NamedModel(ModelConfig(**sizes, segments=1, feedback=None), image_size, dataset, of_backbone)
        models[topdown] = NamedModel(ModelConfig(**sizes), image_size, dataset, of_tdformer)
        if name == "qkformer_hst10_768":
            of_one = "65.55 M; 85.37 (224), 86.29 (288)"
            models[f"{topdown}_1block"] = NamedModel(ModelConfig(**sizes, feedback=one_block), image_size, dataset, of_one)
    return models


MODELS = _models()

STATISTICS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
"""Mean and standard deviation of the channels, as the public recipes have them."""


def find_model(name: str) -> NamedModel:
    """Return a network by name. Raises UserError, with the most similar names, if there is none."""
    if name not in MODELS:
        raise UserError(f"there is no model {name!r}{did_you_mean(name, MODELS, count=3)} (`tdformer models` lists them all)")
    return MODELS[name]


def create_model(name: str, *, recompute: RecomputePolicy = "none", **changes: Any) -> TDFormer:
    """Make a freshly initialised network by name, with changes to keys of its ModelConfig or of the sections in it.

    create_model("tdformer_hst10_768", num_classes=100, time_steps=8, control="cm2", drop_path=0.1)

    timm's names of arguments work too; img_size is kept in `default_cfg`. Raises UserError for an unknown name or key (with the nearest
    ones), and for sizes that do not fit.
    """
    named, keys = find_model(name), keys_of(changes)
    without_head = keys.get("num_classes") == 0  # timm asks for features in this way
    if without_head:
        del keys["num_classes"]
    img_size = keys.pop("img_size", named.image_size)
    config = changed(name, keys)
    image_size = side_of(img_size, config.backbone.stride)
    model = TDFormer(config, recompute)
    if data := data_of(name):
        model.set_input(image_size, data.mean, data.std, data.crop_pct)
    if without_head:
        model.reset_classifier(0)
    return model


def data_of(name: str) -> DataConfig | None:
    """Return how the images of a network are made, as its public recipe has it. None for event frames. The data sets are not named."""
    named = find_model(name)
    if named.dataset not in STATISTICS:
        return None
    mean, std = STATISTICS[named.dataset]
    crop_pct = 0.875 if named.dataset == "ImageNet" else 1.0
    return DataConfig(train="unnamed", val="unnamed", image_size=named.image_size, mean=mean, std=std, crop_pct=crop_pct)


def changed(name: str, changes: dict[str, Any]) -> ModelConfig:
    """Return the configuration of a network by name, with changes to its keys or to those of the sections in it."""
    tree = find_model(name).config.model_dump()
    tree |= {key: value for key, value in changes.items() if key in tree}
    sections = [section for section in (tree, tree["backbone"], tree["feedback"]) if isinstance(section, dict)]
    for key, value in changes.items():
        section = next((section for section in sections if key in section), None)
        if section is None:
            known = [key for section in sections for key in section]
            raise UserError(f"model {name} has no key {key!r}{did_you_mean(key, known)} (allowed: {', '.join(known)})")
        section[key] = value
    return checked(ModelConfig, tree, f"model {name} cannot be made so")


def parameter_counts(config: ModelConfig) -> tuple[int, int]:
    """Return the number of parameters of the whole network, and of its backbone alone."""
    with torch.device("meta"):
        model = TDFormer(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, total - sum(parameter.numel() for parameter in model.topdown_parameters().values())


def _register(name: str) -> None:
    def entry_point(pretrained: bool = False, pretrained_cfg: Any = None, **changes: Any) -> TDFormer:
        """Make the network as timm does. pretrained_cfg: timm's description of weights, from `local-dir:FOLDER` or a hub."""
        described = asdict(pretrained_cfg) if isinstance(pretrained_cfg, PretrainedCfg) else pretrained_cfg
        if pretrained and not (isinstance(described, dict) and described.get("source") in ("local-dir", "hf-hub")):
            raise UserError(
                f"no weights of {name} are published; give local-dir:FOLDER as the name, or checkpoint_path, or use "
                f"tdformer.models.load_pretrained(folder)"
            )
        for key in ("pretrained_cfg_overlay", "cache_dir", "pretrained_model_args"):  # timm passes these to every model
            changes.pop(key, None)
        model = create_model(name, **changes)
        if isinstance(described, dict):
            model.pretrained_cfg = model.default_cfg = {**getattr(model, "default_cfg", {}), **described, "architecture": name}
        if pretrained:
            in_chans = model.config.backbone.in_channels
            load_pretrained(model, pretrained_cfg=model.pretrained_cfg, num_classes=model.num_classes, in_chans=in_chans)
        return model

    entry_point.__name__ = entry_point.__qualname__ = name
    register_model(entry_point)


__all__ = ["MODELS", "NamedModel", "create_model", "find_model", "parameter_counts"]
for _name in MODELS:
    _register(_name)
