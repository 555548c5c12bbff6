"""Describes one run as a typed tree, and reads it from YAML and overrides. Imports no torch."""

from tdformer.config.model import BackboneConfig, Family, FeedbackConfig, ModelConfig, Variant
from tdformer.config.schema import CheckpointConfig, PreemptionConfig, ProfilingConfig, RunConfig, TrackingConfig, WatchdogConfig
from tdformer.config.training import Kernels, OptimizerConfig, Precision, RecomputePolicy, TrainingConfig

__all__ = [
    "BackboneConfig",
    "CheckpointConfig",
    "Family",
    "FeedbackConfig",
    "Kernels",
    "ModelConfig",
    "OptimizerConfig",
    "Precision",
    "PreemptionConfig",
    "ProfilingConfig",
    "RecomputePolicy",
    "RunConfig",
    "TrackingConfig",
    "TrainingConfig",
    "Variant",
    "WatchdogConfig",
]
