"""The paper's tables of configuration, row by row (its appendix; docs/paper-tables.md shows them as printed).

A row is a field of the configuration. A list has a value for each column; any other value is printed for all columns.
Strides are not printed: they are what the printed latent grids ask for. Lists that the paper prints bottom to top are
coarse first here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrvqvae.config.tables import Table

COLUMNS = ("ffhq", "imagenet", "cifar10", "mnist")
_OF_THE_GRID = {"model.stride": "latent grid"}

TABLE_4 = Table(  # VQVAE-2 as first published. Its codebook sizes contradict each other: 512 codewords of width 64.
    source="Table 4",
    columns=("ffhq1024", "imagenet256"),
    rows={
        "model.grids": [3, 2],
        "model.stride": [8, 4],
        "model.quantizer.beta": 0.25,
        "model.hidden_units": 128,
        "model.residual_units": 64,
        "model.quantizer.codewords": 512,
        "model.quantizer.dim": 64,
        "model.kernel": 3,
        "training.max_steps": [304_741, 2_207_444],
        "training.polyak_decay": 0.9999,
        "training.learning_rate": 2e-4,
    },
    remarks=_OF_THE_GRID,
)

TABLE_5 = Table(  # Input data, for HR-VQVAE and the retrained VQVAE-2.
    source="Table 5",
    columns=COLUMNS,
    rows={
        "data.train_samples": [60_000, 1_281_167, 50_000, 60_000],
        "data.test_samples": [10_000, 100_000, 10_000, 10_000],
        "data.size": [256, 128, 32, 28],
        "data.channels": [3, 3, 3, 1],
        "data.dataset": ["ffhq", "imagenet", "cifar10", "mnist"],
        "training.batch_size": [32, 64, 128, 128],
        "training.epochs": [400, 400, 999, 999],
    },
)

TABLE_6 = Table(  # HR-VQVAE with three levels, autoencoder.
    source="Table 6",
    columns=COLUMNS,
    rows={
        "model.quantizer.levels": 3,
        "model.stride": [8, 4, 2, 2],
        "model.quantizer.beta": 0.25,
        "model.hidden_units": [128, 128, 64, 64],
        "model.residual_units": 64,
        "model.quantizer.codewords": [8, 8, 8, 4],
        "model.quantizer.dim": [32, 32, 16, 8],
        "model.kernel": 3,
        "training.polyak_decay": 0.9,
        "training.learning_rate": 3e-3,
    },
    remarks=_OF_THE_GRID,
)

TABLE_7 = Table(  # VQVAE-2 with three levels, as retrained for the comparison.
    source="Table 7",
    columns=COLUMNS,
    rows={
        "model.grids": 3,
        "model.stride": [8, 4, 2, 2],
        "model.quantizer.beta": 0.25,
        "model.hidden_units": [128, 128, 64, 64],
        "model.residual_units": 64,
        "model.quantizer.codewords": [512, 512, 512, 64],
        "model.quantizer.dim": [32, 32, 16, 8],
        "model.kernel": 3,
        "training.polyak_decay": 0.9,
        "training.learning_rate": 3e-3,
    },
    remarks=_OF_THE_GRID,
)

TABLE_8 = Table(  # The priors of HR-VQVAE. Output stack layers: 0, which is how the network is built.
    source="Table 8",
    columns=COLUMNS,
    rows={
        "prior.training.batch_size": [(32,), (128,), (512,), (512,)],
        "prior.network.hidden_units": [128, 128, 64, 64],
        "prior.network.residual_units": 64,
        "prior.network.attention_layers": (4,),
        "prior.network.attention_heads": 8,
        "prior.network.kernel": 5,
        "prior.network.dropout": [(0.15,), (0.15,), (0.1,), (0.1,)],
        "prior.training.polyak_decay": 0.99,
    },
)

TABLE_9 = Table(  # The priors of VQVAE-2.
    source="Table 9",
    columns=COLUMNS,
    rows={
        "prior.training.batch_size": [(128, 64, 32), (256, 128, 64), (512,), (512,)],
        "prior.network.hidden_units": [128, 128, 64, 64],
        "prior.network.residual_units": [64, 128, 64, 64],
        "prior.network.attention_layers": (4, 1, 0),
        "prior.network.attention_heads": 8,
        "prior.network.kernel": 5,
        "prior.network.dropout": (0.5, 0.3, 0.25),
        "prior.training.polyak_decay": 0.99,
    },
)

# Figures that the paper prints and that follow from the rows above: Table 5's steps, appendix A.1's factors.
_STEPS = {"ffhq": 875_000, "imagenet": 8_007_293, "cifar10": 390_234, "mnist": 468_281}
_RATIOS = {"hrvqvae/ffhq": 171, "vqvae2/ffhq": 130}


def printed_figures(preset: str) -> Mapping[str, Any]:
    """What the paper prints about a preset beside its fields: training steps, compression ratio."""
    system, _, data = preset.partition("/")
    found: dict[str, Any] = {}
    if system in ("hrvqvae", "vqvae2") and data in _STEPS:
        found["training_steps"] = _STEPS[data]
    if preset in _RATIOS:
        found["compression_ratio"] = _RATIOS[preset]
    return found
