"""The networks. Nothing here knows how they are trained. Importing this package registers its models with timm."""

from tdformer.models.pretrained import load_pretrained
from tdformer.models.registry import create_model

__all__ = ["create_model", "load_pretrained"]
