"""VQVAE-2: several latent grids, each with a flat codebook (Razavi et al. 2019)."""

from hrvqvae.config.registry import ExtraPreset, System
from hrvqvae.config.tables import (
    FASTER_CODEBOOKS,
    MORE_DROPOUT,
    OURS,
    PIXELSNAIL_PRIORS,
    TABLE_4,
    TABLE_4_COLUMNS,
    TABLE_5,
    TABLE_7,
    TABLE_9,
    column,
    settings,
)
from hrvqvae.models.vqvae2.config import VQVAE2Config

_TABLE_4_NOTE = (
    "Table 4 prints codebook size 64 beside 512 codewords, and three codeword counts for two levels of ImageNet: "
    "512 codewords of dimension 64 a level are taken."
)


def _original(name: str, about: str, data: str, ours: dict[str, object]) -> ExtraPreset:
    taken = {key: value for key, (value, _) in column(TABLE_5, data).items()}
    return ExtraPreset(
        name=f"vqvae2-original/{name}",
        about=about,
        settings=column(TABLE_4, name, TABLE_4_COLUMNS) | PIXELSNAIL_PRIORS | settings(OURS, taken | ours),
        notes=(_TABLE_4_NOTE,),
    )


SYSTEM = System(
    name="vqvae2",
    title="VQVAE-2",
    source="Razavi et al. 2019",
    config=VQVAE2Config(),
    model="hrvqvae.models.vqvae2.model:VQVAE2",
    settings=TABLE_7 | TABLE_9 | FASTER_CODEBOOKS | PIXELSNAIL_PRIORS,
    few_images=MORE_DROPOUT,
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
