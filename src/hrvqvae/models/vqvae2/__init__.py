"""VQVAE-2: several latent grids, each with a flat codebook (Razavi et al. 2019)."""

from hrvqvae.config.entries import ExtraPreset, System, TableSettings
from hrvqvae.config.paper_tables import TABLE_4, TABLE_5, TABLE_7, TABLE_9
from hrvqvae.config.shared_tables import FASTER_CODEBOOKS, MORE_DROPOUT, PIXELSNAIL_PRIORS
from hrvqvae.config.tables import OURS, Part
from hrvqvae.models.vqvae2.config import VQVAE2Config

_TABLE_4_NOTE = (
    "Table 4 prints codebook size 64 beside 512 codewords, and three codeword counts for two levels of ImageNet: "
    "512 codewords of dimension 64 a level are taken."
)


def _original(column: str, about: str, data: str, ours: dict[str, object]) -> ExtraPreset:
    return ExtraPreset(
        name=f"vqvae2-original/{column}",
        about=about,
        parts=(TABLE_4.column(column), Part(OURS, {**PIXELSNAIL_PRIORS.rows, **TABLE_5.column(data).values, **ours})),
        notes=(_TABLE_4_NOTE,),
    )


SYSTEM = System(
    name="vqvae2",
    title="VQVAE-2",
    source="Razavi et al. 2019",
    config=VQVAE2Config(),
    model="hrvqvae.models.vqvae2.model:VQVAE2",
    settings=TableSettings((TABLE_7, TABLE_9, FASTER_CODEBOOKS, PIXELSNAIL_PRIORS), few_images=MORE_DROPOUT),
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
)  # fmt: skip
