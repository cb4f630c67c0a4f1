"""VQVAE-2: several latent grids, each with a flat codebook (Razavi et al. 2019)."""

from hrvqvae.config.entries import Dataset, ExtraPreset, System
from hrvqvae.config.paper_tables import COLUMNS, TABLE_4, TABLE_5, TABLE_7, TABLE_9
from hrvqvae.config.tables import OURS, Part, Table
from hrvqvae.systems.vqvae2.config import VQVAE2Config

_PRIORS = {
    "prior.network.residual_blocks": 12,
    "prior.training.epochs": 100,
    "prior.training.learning_rate": 1e-3,
    "prior.training.warmup_steps": 200,
}
_OURS = Table(
    source=OURS, columns=COLUMNS, rows={"model.quantizer.decay": 0.95, "training.adam_beta2": 0.99, **_PRIORS}
)


def _settings(dataset: Dataset) -> tuple[Part, ...]:
    tables = (TABLE_7, TABLE_9, _OURS)
    few = {"prior.network.dropout": (0.3,)} if dataset.few_images else {}
    return (*(table.column(dataset.column, dataset.name) for table in tables), Part(OURS, few))


_TABLE_4_NOTE = (
    "Table 4 prints codebook size 64 beside 512 codewords, and three codeword counts for two levels of ImageNet: "
    "512 codewords of dimension 64 a level are taken."
)


def _original(column: str, about: str, data: str, ours: dict[str, object]) -> ExtraPreset:
    return ExtraPreset(
        name=f"vqvae2-original/{column}",
        about=about,
        parts=(TABLE_4.column(column), Part(OURS, {**_PRIORS, **TABLE_5.column(data).values, **ours})),
        notes=(_TABLE_4_NOTE,),
    )


SYSTEM = System(
    name="vqvae2",
    title="VQVAE-2",
    source="Razavi et al. 2019",
    config=VQVAE2Config,
    model="hrvqvae.systems.vqvae2.model:VQVAE2",
    settings=_settings,
    extras=(
        _original(
            "ffhq1024",
            "VQVAE-2 as first published, ffhq at 1024 pixels",
            "ffhq",
            {
                "data.split": "sorted", "data.flip": True, "data.labels": False, "data.size": 1024,
                "training.epochs": 0, "training.batch_size": 8,
            },
        ),
        _original(
            "imagenet256",
            "VQVAE-2 as first published, imagenet at 256 pixels",
            "imagenet",
            {"data.crop": "random", "data.flip": True, "data.size": 256, "training.epochs": 0},
        ),
    ),
    notes=("Table 9 prints no head count for the middle grid's one attention layer: 8 is ours.",),
    colour="#228833",
    marker="^",
)  # fmt: skip
