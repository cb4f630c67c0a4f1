"""HR-VQVAE: hierarchical residual vector quantization of images, with linked codebooks.

>>> model = hrvqvae.load("runs/mnist")
>>> codes = model.encode(images)            # images: (B, C, Y, X), uint8 or float32 in [0, 1]
>>> coarse = model.decode(codes, levels=2)  # (B, C, Y, X), float32 in [0, 1]
>>> digits = hrvqvae.load("mnist").sample(16, class_name="7", seed=0)  # (16, 1, 28, 28), float32 in
[0, 1]

Importing this package does not import torch: each name is imported at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hrvqvae.version import __version__ as __version__

if TYPE_CHECKING:
    from hrvqvae.checkpoints.folder import list_models
    from hrvqvae.checkpoints.planting import plant
    from hrvqvae.config import Config, DataConfig, QuantizerConfig, SingleGridConfig, TrainingConfig
    from hrvqvae.data.images import read_image, to_pil
    from hrvqvae.model import Model, load, train
    from hrvqvae.models.base import Autoencoder
    from hrvqvae.models.single_grid import SingleGridAutoencoder
    from hrvqvae.priors.sampling import SamplingParams
    from hrvqvae.quantize import Codes, ResidualQuantizer
    from hrvqvae.quantize.layer import TreeVQ
    from hrvqvae.utils.errors import DamagedFileError, InputError, NonFiniteError

_MODULES = {
    "checkpoints.folder": "list_models",
    "checkpoints.planting": "plant",
    "data.images": "read_image to_pil",
    "config": "Config DataConfig QuantizerConfig SingleGridConfig TrainingConfig",
    "model": "Model load train",
    "models.base": "Autoencoder",
    "models.single_grid": "SingleGridAutoencoder",
    "priors.sampling": "SamplingParams",
    "quantize": "Codes ResidualQuantizer",
    "quantize.layer": "TreeVQ",
    "utils.errors": "DamagedFileError InputError NonFiniteError",
}

__all__ = [
    "Autoencoder",
    "Codes",
    "Config",
    "DamagedFileError",
    "DataConfig",
    "InputError",
    "Model",
    "NonFiniteError",
    "QuantizerConfig",
    "ResidualQuantizer",
    "SamplingParams",
    "SingleGridAutoencoder",
    "SingleGridConfig",
    "TrainingConfig",
    "TreeVQ",
    "list_models",
    "load",
    "plant",
    "read_image",
    "to_pil",
    "train",
]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names.split():
            return getattr(importlib.import_module(f"hrvqvae.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
