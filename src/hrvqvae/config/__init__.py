"""The whole description of a run: frozen dataclasses, presets, the paper's tables, registries. No torch."""

from hrvqvae.config.model import Grid, ModelConfig, NetworkConfig, SingleGridConfig, decided_on_start
from hrvqvae.config.quantizer import QuantizerConfig
from hrvqvae.config.schema import (
    Config,
    DataConfig,
    Levels,
    PriorConfig,
    PriorNetworkConfig,
    PriorTrainingConfig,
    StageConfig,
    TrainingConfig,
    at_level,
    bits_per_image,
    compression_ratio,
    flatten,
    level_names,
    to_dict,
    training_steps,
)

__all__ = [
    "Config",
    "DataConfig",
    "Grid",
    "Levels",
    "ModelConfig",
    "NetworkConfig",
    "PriorConfig",
    "PriorNetworkConfig",
    "PriorTrainingConfig",
    "QuantizerConfig",
    "SingleGridConfig",
    "StageConfig",
    "TrainingConfig",
    "at_level",
    "bits_per_image",
    "compression_ratio",
    "decided_on_start",
    "flatten",
    "level_names",
    "to_dict",
    "training_steps",
]
