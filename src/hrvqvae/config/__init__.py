"""The whole description of a run: frozen dataclasses, presets, the paper's tables, registries. No torch."""

from hrvqvae.config.data import DataConfig
from hrvqvae.config.model import CodebookModelConfig, FlatConfig, Grid, ModelConfig, NetworkConfig, OneGridConfig
from hrvqvae.config.prior import Levels, PriorConfig, PriorNetworkConfig, level_names
from hrvqvae.config.quantizer import QuantizerConfig, TreeQuantizerConfig
from hrvqvae.config.schema import Config, bits_per_image, compression_ratio, flatten, to_dict, training_steps
from hrvqvae.config.training import PriorTrainingConfig, TrainingConfig, at_level

__all__ = [
    "CodebookModelConfig",
    "Config",
    "DataConfig",
    "FlatConfig",
    "Grid",
    "Levels",
    "ModelConfig",
    "NetworkConfig",
    "OneGridConfig",
    "PriorConfig",
    "PriorNetworkConfig",
    "PriorTrainingConfig",
    "QuantizerConfig",
    "TrainingConfig",
    "TreeQuantizerConfig",
    "at_level",
    "bits_per_image",
    "compression_ratio",
    "flatten",
    "level_names",
    "to_dict",
    "training_steps",
]
