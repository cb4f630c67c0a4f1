"""Quantizers of the library vector-quantize-pytorch on one latent grid: FSQ, and others by name."""

from typing import Any

from hrvqvae.config.registry import System
from hrvqvae.config.tables import (
    MORE_DROPOUT,
    NETWORK_AS_TABLE_6,
    OURS,
    PIXELSNAIL_PRIORS,
    TABLE_8,
    Settings,
    as_printed,
    settings,
)
from hrvqvae.models.vqpytorch.config import FSQConfig, VQPyTorchConfig

_NEEDS = ("vector_quantize_pytorch", "hrvqvae[vqpytorch]")
_ADAM = settings(OURS, {"training.adam_beta2": 0.99})


def _settings(source: str, rows: dict[str, Any]) -> Settings:
    """HR-VQVAE's network, grid and priors, with rows that say how many codes there are: m^3 of HR-VQVAE's row."""
    return NETWORK_AS_TABLE_6 | settings(source, rows) | as_printed(TABLE_8) | _ADAM | PIXELSNAIL_PRIORS


FSQ = System(
    name="fsq",
    title="FSQ",
    source="Mentzer et al. 2023",
    config=FSQConfig(),
    model="hrvqvae.models.vqpytorch.model:FSQModel",
    settings=_settings(
        "FSQ's own for 512 and 64 codes",
        {"model.quantizer.channel_levels": [(8, 8, 8), (8, 8, 8), (8, 8, 8), (8, 8)]},
    ),
    notes=("FSQ is not printed: the HR-VQVAE row with as many codes as the tree has leaves, so the same bits.",),
    few_images=MORE_DROPOUT,
    needs=_NEEDS,
)

VQPYTORCH = System(
    name="vqpytorch",
    title="Library quantizer",
    source="vector-quantize-pytorch",
    config=VQPyTorchConfig(),
    model="hrvqvae.models.vqpytorch.model:VQPyTorchModel",
    settings=_settings("as Table 6", {"model.quantizer.codewords": [512, 512, 512, 64]}),
    notes=(
        "SimVQ, LFQ and VectorQuantize (--model.quantizer.name) are not printed: the HR-VQVAE row with as many "
        "codewords as the tree has leaves, so the same bits.",
    ),
    few_images=MORE_DROPOUT,
    needs=_NEEDS,
)
