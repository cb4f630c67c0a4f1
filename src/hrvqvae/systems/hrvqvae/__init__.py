"""HR-VQVAE: one latent grid, quantized level by level with linked codebooks (docs/method.md).

Two systems: HR-VQVAE as printed, and TreeVQ, the same model with what we changed (docs/ours.md).
"""

from hrvqvae.config.entries import System, TableSettings
from hrvqvae.config.paper_tables import COLUMNS, TABLE_6, TABLE_8
from hrvqvae.config.shared_tables import FASTER_CODEBOOKS, MORE_DROPOUT, PIXELSNAIL_PRIORS, PRIORS_AS_TABLE_8
from hrvqvae.config.tables import OURS, Table
from hrvqvae.systems.hrvqvae.config import HRVQVAEConfig, TreeVQConfig

SYSTEM = System(
    name="hrvqvae",
    title="HR-VQVAE",
    source="Adiban et al., BMVC 2022",
    config=HRVQVAEConfig,
    model="hrvqvae.systems.hrvqvae.model:HRVQVAE",
    settings=TableSettings((TABLE_6, TABLE_8, FASTER_CODEBOOKS, PIXELSNAIL_PRIORS), few_images=MORE_DROPOUT),
    colour="#4477aa",
    marker="o",
)

_AS_TABLE_6 = Table(source="as Table 6", columns=COLUMNS, rows=TABLE_6.rows, remarks=TABLE_6.remarks)

# Each row has its line in docs/ours.md, with what it brings.
_CHANGES = Table(
    source=OURS,
    columns=COLUMNS,
    rows={
        "model.network": "normalized",
        "model.quantizer.beta": 1.0,
        "model.quantizer.level_betas": (0.0,),
        "model.quantizer.beam": 4,
        "model.quantizer.coarse_weight": 0.1,
    },
)

TREEVQ = System(
    name="treevq",
    title="TreeVQ",
    source="HR-VQVAE with our changes (docs/ours.md)",
    config=TreeVQConfig,
    model="hrvqvae.systems.hrvqvae.model:HRVQVAE",
    settings=TableSettings(
        (_AS_TABLE_6, PRIORS_AS_TABLE_8, FASTER_CODEBOOKS, PIXELSNAIL_PRIORS, _CHANGES), few_images=MORE_DROPOUT
    ),
    notes=("TreeVQ is not printed: it is the HR-VQVAE row, with what is marked ours changed.",),
    colour="#114477",
    marker="*",
)
