"""VQVAE: one latent grid, one flat codebook (van den Oord et al. 2017)."""

from hrvqvae.config.entries import Dataset, System
from hrvqvae.config.paper_tables import COLUMNS, TABLE_8
from hrvqvae.config.tables import OURS, Part, Table
from hrvqvae.systems.vqvae.config import VQVAEConfig

# The paper does not print how VQVAE was retrained. This is Table 6 with a flat codebook of as many codewords as the
# tree has leaves.
_AS_TABLE_6 = Table(
    source="as Table 6",
    columns=COLUMNS,
    rows={
        "model.stride": [8, 4, 2, 2],
        "model.quantizer.beta": 0.25,
        "model.hidden_units": [128, 128, 64, 64],
        "model.residual_units": 64,
        "model.quantizer.codewords": [512, 512, 512, 64],  # m^3
        "model.quantizer.dim": [32, 32, 16, 8],
        "model.kernel": 3,
        "training.polyak_decay": 0.9,
        "training.learning_rate": 3e-3,
    },
    remarks={"model.stride": "latent grid"},
)
_AS_TABLE_8 = Table(source="as Table 8", columns=COLUMNS, rows=TABLE_8.rows)
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
    tables = (_AS_TABLE_6, _AS_TABLE_8, _OURS)
    few = {"prior.network.dropout": (0.3,)} if dataset.few_images else {}
    return (*(table.column(dataset.column, dataset.name) for table in tables), Part(OURS, few))


SYSTEM = System(
    name="vqvae",
    title="VQVAE",
    source="van den Oord et al. 2017",
    config=VQVAEConfig,
    model="hrvqvae.systems.vqvae.model:VQVAE",
    settings=_settings,
    notes=(
        "VQVAE is not printed: the HR-VQVAE row with one flat codebook of m^3 codewords, so the same bits a position.",
    ),
    colour="#cc6677",
    marker="s",
)
