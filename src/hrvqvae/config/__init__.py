"""The configuration of a run, its presets, and the registries of entries. Does not import torch."""

from hrvqvae.config.model import (
    Geometry,
    Grid,
    Levels,
    ModelConfig,
    NetworkConfig,
    PriorNetworkConfig,
    QuantizerConfig,
    SingleGridConfig,
)
from hrvqvae.config.schema import (
    Config,
    DataConfig,
    PriorConfig,
    StageConfig,
    TrainingConfig,
    at_level,
    bits_per_image,
    compression_ratio,
    level_names,
)
from hrvqvae.config.section import flatten, to_dict

__all__ = [
    "Config",
    "DataConfig",
    "Geometry",
    "Grid",
    "Levels",
    "ModelConfig",
    "NetworkConfig",
    "PriorConfig",
    "PriorNetworkConfig",
    "QuantizerConfig",
    "SingleGridConfig",
    "StageConfig",
    "TrainingConfig",
    "at_level",
    "bits_per_image",
    "compression_ratio",
    "flatten",
    "level_names",
    "to_dict",
]
