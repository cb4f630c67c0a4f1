"""HR-VQVAE: one latent grid, quantized level by level with linked codebooks (docs/method.md)."""

from hrvqvae.config.registry import System
from hrvqvae.config.tables import FASTER_CODEBOOKS, MORE_DROPOUT, PIXELSNAIL_PRIORS, TABLE_6, TABLE_8
from hrvqvae.models.hrvqvae.config import HRVQVAEConfig

SYSTEM = System(
    name="hrvqvae",
    title="HR-VQVAE",
    source="Adiban et al., BMVC 2022",
    config=HRVQVAEConfig(),
    model="hrvqvae.models.hrvqvae.model:HRVQVAE",
    settings=TABLE_6 | TABLE_8 | FASTER_CODEBOOKS | PIXELSNAIL_PRIORS,
    few_images=MORE_DROPOUT,
)
