"""RQ-VAE: one latent grid, quantized level by level with codebooks that are not linked (Lee et al. 2022)."""

from hrvqvae.config.registry import System
from hrvqvae.config.tables import (
    FASTER_CODEBOOKS,
    MORE_DROPOUT,
    OURS,
    PIXELSNAIL_PRIORS,
    TABLE_6,
    TABLE_8,
    as_printed,
    settings,
)
from hrvqvae.models.rqvae.config import RQVAEConfig

# RQ-VAE is not in the paper. These are HR-VQVAE's rows, so that nothing differs but which codebook a level searches.
_AS_PRINTED = as_printed(TABLE_6 | TABLE_8)
_OURS = settings(OURS, {"model.quantizer.shared": False})

SYSTEM = System(
    name="rqvae",
    title="RQ-VAE",
    source="Lee et al. 2022",
    config=RQVAEConfig(),
    model="hrvqvae.models.rqvae.model:RQVAE",
    settings=_AS_PRINTED | FASTER_CODEBOOKS | PIXELSNAIL_PRIORS | _OURS,
    few_images=MORE_DROPOUT,
    notes=("RQ-VAE is not printed: the HR-VQVAE row with codebooks that are not linked, so the same bits a position.",),
)
