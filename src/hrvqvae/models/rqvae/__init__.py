"""RQ-VAE: one latent grid, quantized level by level with codebooks that are not linked (Lee et al. 2022)."""

from hrvqvae.config.entries import System, TableSettings
from hrvqvae.config.paper_tables import COLUMNS, TABLE_6
from hrvqvae.config.shared_tables import FASTER_CODEBOOKS, MORE_DROPOUT, PIXELSNAIL_PRIORS, PRIORS_AS_TABLE_8
from hrvqvae.config.tables import OURS, Table
from hrvqvae.models.rqvae.config import RQVAEConfig

# RQ-VAE is not in the paper. These are HR-VQVAE's rows, so that nothing differs but which codebook a level searches.
_AS_TABLE_6 = Table(source="as Table 6", columns=COLUMNS, rows=TABLE_6.rows, remarks=TABLE_6.remarks)
_OURS = Table(source=OURS, columns=COLUMNS, rows={"model.quantizer.shared": False})

SYSTEM = System(
    name="rqvae",
    title="RQ-VAE",
    source="Lee et al. 2022",
    config=RQVAEConfig(),
    model="hrvqvae.models.rqvae.model:RQVAE",
    settings=TableSettings(
        (_AS_TABLE_6, PRIORS_AS_TABLE_8, FASTER_CODEBOOKS, PIXELSNAIL_PRIORS, _OURS), few_images=MORE_DROPOUT
    ),
    notes=("RQ-VAE is not printed: the HR-VQVAE row with codebooks that are not linked, so the same bits a position.",),
)
