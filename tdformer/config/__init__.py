"""Describes one run as a typed tree, and reads it from YAML and overrides. Imports no torch."""

from tdformer.config.schema import (
    BackboneConfig,
    CheckpointConfig,
    Family,
    FeedbackConfig,
    Kernels,
    ModelConfig,
    OptimizerConfig,
    Precision,
    PreemptionConfig,
    ProfilingConfig,
    RecomputePolicy,
    RunConfig,
    TrackingConfig,
    TrainingConfig,
    Variant,
    WatchdogConfig,
)

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
