"""HR-VQVAE: hierarchical residual vector quantization of images, with linked codebooks.

>>> model = hrvqvae.load("runs/mnist")
>>> codes = model.encode(images)           # images: (B, C, Y, X), uint8 or float32 in [0, 1]
>>> coarse = model.decode(codes, levels=2)  # (B, C, Y, X), float32 in [0, 1]

Importing this package imports no torch; what needs it is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hrvqvae.config import Config, DataConfig, HRVQVAEConfig, TrainingConfig, TreeQuantizerConfig
from hrvqvae.errors import InputError

if TYPE_CHECKING:
    from hrvqvae.checkpoint import load
    from hrvqvae.models import HRVQVAE, Autoencoder
    from hrvqvae.quantize import Codes, TreeQuantizer

__version__ = "0.1.0"

_LAZY = {
    "load": "hrvqvae.checkpoint",
    "Autoencoder": "hrvqvae.models",
    "HRVQVAE": "hrvqvae.models",
    "Codes": "hrvqvae.quantize",
    "TreeQuantizer": "hrvqvae.quantize",
}

__all__ = [
    "HRVQVAE",
    "Autoencoder",
    "Codes",
    "Config",
    "DataConfig",
    "HRVQVAEConfig",
    "InputError",
    "TrainingConfig",
    "TreeQuantizer",
    "TreeQuantizerConfig",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
