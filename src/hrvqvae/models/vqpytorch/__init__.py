"""Quantizers of the library vector-quantize-pytorch on one latent grid: FSQ, and others by name."""

from typing import Any

from hrvqvae.config.entries import System, TableSettings
from hrvqvae.config.paper_tables import COLUMNS
from hrvqvae.config.shared_tables import MORE_DROPOUT, NETWORK_AS_TABLE_6, PIXELSNAIL_PRIORS, PRIORS_AS_TABLE_8
from hrvqvae.config.tables import OURS, Table
from hrvqvae.models.vqpytorch.config import FSQConfig, VQPyTorchConfig

_NEEDS = ("vector_quantize_pytorch", "hrvqvae[vqpytorch]")
_ADAM = Table(source=OURS, columns=COLUMNS, rows={"training.adam_beta2": 0.99})


def _settings(source: str, rows: dict[str, Any]) -> TableSettings:
    """HR-VQVAE's network, grid and priors, with rows that say how many codes there are: m^3 of HR-VQVAE's row."""
    size = Table(source=source, columns=COLUMNS, rows=rows)
    return TableSettings(
        (NETWORK_AS_TABLE_6, size, PRIORS_AS_TABLE_8, _ADAM, PIXELSNAIL_PRIORS), few_images=MORE_DROPOUT
    )


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
    needs=_NEEDS,
)
