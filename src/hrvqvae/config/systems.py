"""The paper's tables, and the systems: the values that each takes in its presets, each value with its source.

Settings map the dotted name of a field to (value, source). A list has one value for each of `COLUMNS`; any other value
is that of all. The paper's tables (its appendix; docs/paper-tables.md shows them as printed) stand row by row, coarse
first; strides are those of the printed latent grids. What the paper does not print is HR-VQVAE's row ("as Table 6"),
so that systems differ in nothing else than what they are about.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hrvqvae.config.model import FSQConfig, LibraryConfig, QuantizerConfig, SingleGridConfig, VQGANConfig, VQVAE2Config
from hrvqvae.config.registry import ExtraPreset, System
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

# The systems

_LEAVES = [512, 512, 512, 64]  # m^3 of HR-VQVAE's row, so that a position costs the same bits

HRVQVAE = System(
    name="hrvqvae",
    title="HR-VQVAE",
    config=SingleGridConfig(),
    settings=TABLE_6 | TABLE_8 | FASTER_CODEBOOKS | PIXELSNAIL_PRIORS,
    few_images=MORE_DROPOUT,
)

# HR-VQVAE's tree of codebooks with what we found better than the paper's way (docs/what-we-changed.md).
_TREEVQ = {
    "model.quantizer.beta": 1.0,
    "model.quantizer.level_betas": (0.05,),
    "model.quantizer.beam": 4,
    "model.quantizer.coarse_weight": 0.1,
    "training.optimizer": "muon",
    "prior.network.kind": "gpt",
    "prior.network.layers": [6, 6, 6, 4],
    "prior.training.optimizer": "muon",
    "prior.training.adam_beta2": 0.99,
    "prior.training.batch_size": (64,),
    "prior.training.epochs": 100,
    "prior.training.learning_rate": 3e-3,
    "prior.training.warmup_steps": 100,
    "prior.training.polyak_decay": 0.99,
}


def _deep(dataset: str, about: str, codes: dict[str, Any]) -> ExtraPreset:
    """Fewer positions with more levels, and the prior for them (docs/results.md, "Samples")."""
    taken = settings(OURS, {"prior.class_dropout": 0.1, **codes})
    return ExtraPreset(name=f"treevq-deep/{dataset}", about=about, settings=taken, dataset=dataset)


_DEEP = {
    "model.hidden_units": 128,
    "model.residual_blocks": 4,
    "model.quantizer.levels": 12,
    "model.quantizer.linked": 4,
    "model.quantizer.dim": 48,
}
_DEEP_CIFAR10 = {
    **_DEEP,
    "model.stride": 4,
    "prior.network.hidden_units": 160,
    "prior.network.heads": 5,
    "prior.flip": True,
}
_DEEP_MNIST = {
    "model.stride": 4,
    "model.padding": 2,
    "model.hidden_units": 96,
    "model.quantizer.levels": 5,
    "model.quantizer.linked": 5,
    "model.quantizer.dim": 24,
}
_DEEP_PHOTOS = {**_DEEP, "model.stride": 8, "training.learning_rate": 3e-3, "prior.class_dropout": 0.0}
TREEVQ = System(
    name="treevq",
    title="TreeVQ",
    config=SingleGridConfig(),
    settings=as_printed(TABLE_6) | FASTER_CODEBOOKS | settings(OURS, _TREEVQ),
    few_images=settings(OURS, {"prior.network.dropout": 0.3}),
    extras=(
        _deep("cifar10", "CIFAR10 as 8x8 positions of 12 levels, for samples", _DEEP_CIFAR10),
        _deep("mnist", "MNIST as 8x8 positions of 5 levels, for samples", _DEEP_MNIST),
        _deep("imagenet", "ImageNet, 128x128, as 16x16 positions of 12 levels", {**_DEEP, "model.stride": 8}),
        _deep("photos", "photographs, 256x256 crops, as 32x32 positions of 12 levels", _DEEP_PHOTOS),
    ),
    notes=("TreeVQ is not printed: the HR-VQVAE row, trained as docs/what-we-changed.md says.",),
)


def _as_hrvqvae(source: str, codes: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """HR-VQVAE's network, grid and priors, with settings that say how many codes there are."""
    adam = settings(OURS, {"training.adam_beta2": 0.99})
    return NETWORK_AS_TABLE_6 | settings(source, codes) | as_printed(TABLE_8) | adam | PIXELSNAIL_PRIORS


VQVAE = System(
    name="vqvae",
    title="VQVAE",
    config=SingleGridConfig(quantizer=QuantizerConfig()),
    settings=_as_hrvqvae("as Table 6", {"model.quantizer.beta": 0.25, "model.quantizer.codewords": _LEAVES})
    | FASTER_CODEBOOKS,
    few_images=MORE_DROPOUT,
    notes=(
        "VQVAE is not printed: the HR-VQVAE row with one flat codebook of m^3 codewords, so the same bits a position.",
    ),
)

RQVAE = System(
    name="rqvae",
    title="RQ-VAE",
    config=SingleGridConfig(quantizer=QuantizerConfig(levels=3, codewords=8, linked=1)),
    settings=as_printed(TABLE_6 | TABLE_8) | FASTER_CODEBOOKS | PIXELSNAIL_PRIORS,
    few_images=MORE_DROPOUT,
    notes=("RQ-VAE is not printed: the HR-VQVAE row with codebooks that are not linked, so the same bits a position.",),
)

_VQGAN = {
    "model.quantizer.beta": 0.25,
    "model.quantizer.codewords": 1024,
    "model.quantizer.decay": 0.95,
    "model.adversarial_weight": 0.1,
    "model.adversarial_start": [10_000, 10_000, 1_000, 1_000],
    "model.discriminator_units": [64, 64, 32, 32],
    "model.discriminator_layers": [3, 3, 2, 2],
    "training.learning_rate": [3e-4, 3e-4, 1e-3, 1e-3],
    "prior.network.kind": "gpt",
    "prior.network.hidden_units": [512, 512, 128, 128],
    "prior.network.layers": [12, 12, 6, 6],
    "prior.network.heads": 8,
    "prior.network.dropout": 0.1,
    "prior.training.batch_size": (32,),
    "prior.training.polyak_decay": 0.99,
    "prior.training.epochs": 100,
    "prior.training.learning_rate": 1e-3,
    "prior.training.warmup_steps": 200,
}
VQGAN = System(
    name="vqgan",
    title="VQGAN",
    config=VQGANConfig(),
    objective="hrvqvae.models.vqgan:AdversarialObjective",
    settings=NETWORK_AS_TABLE_6 | settings(OURS, _VQGAN),
    few_images=settings(OURS, {"model.adversarial_start": 1_000, "prior.network.dropout": 0.3}),
    notes=(
        "VQGAN is not printed: the HR-VQVAE row's grid and network, 1,024 codewords, a transformer prior. Its "
        "adversarial weight is 0.1: with the usual 0.8 and this learning rate, an untrained discriminator undoes the "
        "decoder at once.",
    ),
)


def _as_first_published(name: str, about: str, data: str, ours: dict[str, Any]) -> ExtraPreset:
    taken = {key: value for key, (value, _) in column(TABLE_5, data).items()}
    return ExtraPreset(
        name=f"vqvae2-original/{name}",
        about=about,
        settings=column(TABLE_4, name, TABLE_4_COLUMNS) | PIXELSNAIL_PRIORS | settings(OURS, taken | ours),
        notes=(
            "Table 4 prints codebook size 64 beside 512 codewords, and three codeword counts for two levels of "
            "ImageNet: 512 codewords of dimension 64 a level are taken.",
        ),
    )


VQVAE2 = System(
    name="vqvae2",
    title="VQVAE-2",
    config=VQVAE2Config(),
    model="hrvqvae.models.vqvae2:VQVAE2",
    settings=TABLE_7 | TABLE_9 | FASTER_CODEBOOKS | PIXELSNAIL_PRIORS,
    few_images=MORE_DROPOUT,
    extras=(
        _as_first_published(
            "ffhq1024",
            "VQVAE-2 as first published, ffhq at 1024 pixels",
            "ffhq",
            {
                "data.split": "sorted", "data.flip": True, "data.labels": False, "data.size": 1024,
                "training.epochs": 0, "training.batch_size": 8,
            },
        ),
        _as_first_published(
            "imagenet256",
            "VQVAE-2 as first published, imagenet at 256 pixels",
            "imagenet",
            {"data.crop": "random", "data.flip": True, "data.size": 256, "training.epochs": 0},
        ),
    ),
    notes=("Table 9 prints no head count for the middle grid's one attention layer: 8 is ours.",),
)  # fmt: skip

_NEEDS_LIBRARY = ("vector_quantize_pytorch", "hrvqvae[vqpytorch]")

FSQ = System(
    name="fsq",
    title="FSQ",
    config=FSQConfig(),
    model="hrvqvae.models.library:LibraryAutoencoder",
    settings=_as_hrvqvae(
        "FSQ's own for 512 and 64 codes",
        {"model.quantizer.channel_levels": [(8, 8, 8), (8, 8, 8), (8, 8, 8), (8, 8)]},
    ),
    few_images=MORE_DROPOUT,
    notes=("FSQ is not printed: the HR-VQVAE row with as many codes as the tree has leaves, so the same bits.",),
    needs=_NEEDS_LIBRARY,
)

VQPYTORCH = System(
    name="vqpytorch",
    title="Library quantizer",
    config=LibraryConfig(),
    model="hrvqvae.models.library:LibraryAutoencoder",
    settings=_as_hrvqvae("as Table 6", {"model.quantizer.codewords": _LEAVES}),
    few_images=MORE_DROPOUT,
    notes=(
        "SimVQ, LFQ and VectorQuantize (--model.quantizer.name) are not printed: the HR-VQVAE row with as many "
        "codewords as the tree has leaves, so the same bits.",
    ),
    needs=_NEEDS_LIBRARY,
)
