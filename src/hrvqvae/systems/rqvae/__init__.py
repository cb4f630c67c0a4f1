"""RQ-VAE: one latent grid, quantized level by level with codebooks that are not linked (Lee et al. 2022)."""

from hrvqvae.config.entries import Dataset, System
from hrvqvae.config.paper_tables import COLUMNS, TABLE_6, TABLE_8
from hrvqvae.config.tables import OURS, Part, Table
from hrvqvae.systems.rqvae.config import RQVAEConfig

# RQ-VAE is not in the paper. These are HR-VQVAE's rows, so that nothing differs but which codebook a level searches.
_AS_TABLE_6 = Table(source="as Table 6", columns=COLUMNS, rows=TABLE_6.rows, remarks=TABLE_6.remarks)
_AS_TABLE_8 = Table(source="as Table 8", columns=COLUMNS, rows=TABLE_8.rows)
_OURS = Table(
    source=OURS,
    columns=COLUMNS,
    rows={
        "model.quantizer.shared": False,
        "model.quantizer.decay": 0.95,
        "training.adam_beta2": 0.99,
        "prior.network.residual_blocks": 12,
        "prior.training.epochs": 100,
        "prior.training.learning_rate": 1e-3,
        "prior.training.warmup_steps": 200,
    },
)


def _settings(dataset: Dataset) -> tuple[Part, ...]:
    tables = (_AS_TABLE_6, _AS_TABLE_8, _OURS)
    few = {"prior.network.dropout": (0.3,)} if dataset.few_images else {}
    return (*(table.column(dataset.column, dataset.name) for table in tables), Part(OURS, few))


SYSTEM = System(
    name="rqvae",
    title="RQ-VAE",
    source="Lee et al. 2022",
    config=RQVAEConfig,
    model="hrvqvae.systems.rqvae.model:RQVAE",
    settings=_settings,
    notes=("RQ-VAE is not printed: the HR-VQVAE row with codebooks that are not linked, so the same bits a position.",),
    colour="#aa3377",
    marker="v",
)
