"""The configuration of a run, its presets, and the registries of entries. Does not import torch."""

from hrvqvae.config.model import Geometry as Geometry
from hrvqvae.config.model import Grid as Grid
from hrvqvae.config.model import Levels as Levels
from hrvqvae.config.model import ModelConfig as ModelConfig
from hrvqvae.config.model import NetworkConfig as NetworkConfig
from hrvqvae.config.model import PriorNetworkConfig as PriorNetworkConfig
from hrvqvae.config.model import QuantizerConfig as QuantizerConfig
from hrvqvae.config.model import SingleGridConfig as SingleGridConfig
from hrvqvae.config.schema import Config as Config
from hrvqvae.config.schema import DataConfig as DataConfig
from hrvqvae.config.schema import PriorConfig as PriorConfig
from hrvqvae.config.schema import StageConfig as StageConfig
from hrvqvae.config.schema import TrainingConfig as TrainingConfig
from hrvqvae.config.schema import at_level as at_level
from hrvqvae.config.schema import bits_per_image as bits_per_image
from hrvqvae.config.schema import compression_ratio as compression_ratio
from hrvqvae.config.schema import level_names as level_names
from hrvqvae.config.section import flatten as flatten
from hrvqvae.config.section import to_dict as to_dict
