"""Settings, each value beside its source: the paper's tables, and what several systems take.

Settings map the dotted name of a field to (value, source). A list has one value for each of `COLUMNS`; any other value
is that of all. The paper's tables (its appendix; docs/paper-tables.md shows them as printed) stand row by row, coarse
first; strides are those of the printed latent grids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrvqvae.utils.errors import InputError

Settings = Mapping[str, tuple[Any, str]]

OURS = "ours"
COLUMNS = ("ffhq", "imagenet", "cifar10", "mnist")


def settings(source: str, values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Settings of one source."""
    return {name: (value, source) for name, value in values.items()}


def column(rows: Settings, name: str, columns: tuple[str, ...] = COLUMNS) -> dict[str, tuple[Any, str]]:
    """The settings of one column. Raises InputError where there is no such column, or a row has too few values."""
    found = {}
    for key, (value, source) in rows.items():
        if isinstance(value, list):
            if name not in columns or len(value) != len(columns):
                raise InputError(f"{key} ({source}) is {value}; it must have a value for each of {', '.join(columns)}")
            value = value[columns.index(name)]
        found[key] = (value, source)
    return found


def as_printed(table: Settings) -> dict[str, tuple[Any, str]]:
    """What the paper prints for another system: "as Table 6"."""
    return {name: (value, f"as {source}") for name, (value, source) in table.items()}


# VQVAE-2 as first published. Its codebook sizes contradict each other: 512 codewords of width 64.
TABLE_4_COLUMNS = ("ffhq1024", "imagenet256")
TABLE_4 = settings("Table 4 (latent grid)", {"model.stride": [8, 4]}) | settings(
    "Table 4",
    {
        "model.grids": [3, 2],
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
)

# Input data, for HR-VQVAE and the retrained VQVAE-2, and the training steps that are printed beside it.
TABLE_5 = settings(
    "Table 5",
    {
        "data.train_samples": [60_000, 1_281_167, 50_000, 60_000],
        "data.test_samples": [10_000, 100_000, 10_000, 10_000],
        "data.size": [256, 128, 32, 28],
        "data.channels": [3, 3, 3, 1],
        "data.dataset": ["ffhq", "imagenet", "cifar10", "mnist"],
        "training.batch_size": [32, 64, 128, 128],
        "training.epochs": [400, 400, 999, 999],
    },
)
TABLE_5_STEPS = dict(zip(COLUMNS, (875_000, 8_007_293, 390_234, 468_281), strict=True))

_STRIDES = {"model.stride": [8, 4, 2, 2]}
_TABLES_6_AND_7 = {
    "model.quantizer.beta": 0.25,
    "model.hidden_units": [128, 128, 64, 64],
    "model.residual_units": 64,
    "model.quantizer.dim": [32, 32, 16, 8],
    "model.kernel": 3,
    "training.polyak_decay": 0.9,
    "training.learning_rate": 3e-3,
}

# HR-VQVAE, and VQVAE-2 as retrained, with three levels each.
TABLE_6 = settings("Table 6 (latent grid)", _STRIDES) | settings(
    "Table 6", _TABLES_6_AND_7 | {"model.quantizer.levels": 3, "model.quantizer.codewords": [8, 8, 8, 4]}
)
TABLE_7 = settings("Table 7 (latent grid)", _STRIDES) | settings(
    "Table 7", _TABLES_6_AND_7 | {"model.grids": 3, "model.quantizer.codewords": [512, 512, 512, 64]}
)

# The priors of HR-VQVAE and of VQVAE-2. Output stack layers are 0, which is how the network is built.
_TABLES_8_AND_9 = {
    "prior.network.hidden_units": [128, 128, 64, 64],
    "prior.network.attention_heads": 8,
    "prior.network.kernel": 5,
    "prior.training.polyak_decay": 0.99,
}
TABLE_8 = settings(
    "Table 8",
    _TABLES_8_AND_9
    | {
        "prior.training.batch_size": [(32,), (128,), (512,), (512,)],
        "prior.network.residual_units": 64,
        "prior.network.attention_layers": (4,),
        "prior.network.dropout": [(0.15,), (0.15,), (0.1,), (0.1,)],
    },
)
TABLE_9 = settings(
    "Table 9",
    _TABLES_8_AND_9
    | {
        "prior.training.batch_size": [(128, 64, 32), (256, 128, 64), (512,), (512,)],
        "prior.network.residual_units": [64, 128, 64, 64],
        "prior.network.attention_layers": (4, 1, 0),
        "prior.network.dropout": (0.5, 0.3, 0.25),
    },
)

RATIOS = {"hrvqvae/ffhq": 171, "vqvae2/ffhq": 130}
"""Preset -> compression factor that appendix A.1 prints."""

_NETWORK = ("stride", "hidden_units", "residual_units", "kernel", "quantizer.dim")
NETWORK_AS_TABLE_6 = {f"model.{name}": as_printed(TABLE_6)[f"model.{name}"] for name in _NETWORK} | {
    f"training.{name}": as_printed(TABLE_6)[f"training.{name}"] for name in ("polyak_decay", "learning_rate")
}
"""HR-VQVAE's network, grid and learning rate, for a system that the paper does not print."""

FASTER_CODEBOOKS = settings(OURS, {"model.quantizer.decay": 0.95, "training.adam_beta2": 0.99})
"""At the printed learning rate the codewords, and Adam's second moment, must follow the encoder faster than by their
usual decays (docs/results.md has the measurements)."""

PIXELSNAIL_PRIORS = settings(
    OURS,
    {
        "prior.network.residual_blocks": 12,
        "prior.training.epochs": 100,
        "prior.training.learning_rate": 1e-3,
        "prior.training.warmup_steps": 200,
    },
)
"""Neither the number of blocks nor the optimizer of the PixelSNAIL priors is printed."""

MORE_DROPOUT = settings(OURS, {"prior.network.dropout": (0.3,)})
"""For PixelSNAIL priors of few images."""
