"""HR-VQVAE: one latent grid, quantized level by level with linked codebooks (docs/method.md)."""

from hrvqvae.config.entries import Dataset, System
from hrvqvae.config.paper_tables import COLUMNS, TABLE_6, TABLE_8
from hrvqvae.config.tables import OURS, Part, Table
from hrvqvae.systems.hrvqvae.config import HRVQVAEConfig

# Neither blocks nor the priors' optimizer are printed. At the printed learning rate the codewords, and Adam's second
# moment, must follow the encoder faster than by their usual decays (docs/results.md has the measurements).
_OURS = Table(
    source=OURS,
    columns=COLUMNS,
    rows={
        "model.quantizer.decay": 0.95,
        "training.adam_beta2": 0.99,
        "prior.network.residual_blocks": 12,
        "prior.training.epochs": 100,
        "prior.training.learning_rate": 1e-3,
        "prior.training.warmup_steps": 200,
    },
)


def _settings(dataset: Dataset) -> tuple[Part, ...]:
    tables = (TABLE_6, TABLE_8, _OURS)
    few = {"prior.network.dropout": (0.3,)} if dataset.few_images else {}
    return (*(table.column(dataset.column, dataset.name) for table in tables), Part(OURS, few))


SYSTEM = System(
    name="hrvqvae",
    title="HR-VQVAE",
    source="Adiban et al., BMVC 2022",
    config=HRVQVAEConfig,
    model="hrvqvae.systems.hrvqvae.model:HRVQVAE",
    settings=_settings,
    colour="#4477aa",
    marker="o",
)
