"""VQVAE: one latent grid, one flat codebook (van den Oord et al. 2017)."""

from hrvqvae.config.registry import System
from hrvqvae.config.tables import (
    FASTER_CODEBOOKS,
    MORE_DROPOUT,
    NETWORK_AS_TABLE_6,
    PIXELSNAIL_PRIORS,
    TABLE_8,
    as_printed,
    settings,
)
from hrvqvae.models.vqvae.config import VQVAEConfig

# The paper does not print how VQVAE was retrained: a flat codebook of as many codewords as HR-VQVAE's tree has leaves.
_CODEBOOK_AS_TABLE_6 = settings(
    "as Table 6",
    {"model.quantizer.beta": 0.25, "model.quantizer.codewords": [512, 512, 512, 64]},  # m^3
)

SYSTEM = System(
    name="vqvae",
    title="VQVAE",
    source="van den Oord et al. 2017",
    config=VQVAEConfig(),
    model="hrvqvae.models.vqvae.model:VQVAE",
    settings=NETWORK_AS_TABLE_6 | _CODEBOOK_AS_TABLE_6 | as_printed(TABLE_8) | FASTER_CODEBOOKS | PIXELSNAIL_PRIORS,
    few_images=MORE_DROPOUT,
    notes=(
        "VQVAE is not printed: the HR-VQVAE row with one flat codebook of m^3 codewords, so the same bits a position.",
    ),
)
