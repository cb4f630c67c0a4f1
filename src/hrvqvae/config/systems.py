"""The values of the presets: the tables of the paper's appendix, and the systems that take values
from these tables.

Each value has its source. docs/paper-tables.md shows the tables as printed: a column per data set.
Here a row has a field, and a value per column or one for all; "64,32" is a value per level, coarse
first. Strides follow from the latent grids. Systems that are not in the paper take HR-VQVAE's
values ("as Table 6"), so that all systems differ as little as possible.
"""

from collections.abc import Mapping
from typing import Any

from hrvqvae.config.entries import ExtraPreset, Settings, System
from hrvqvae.config.model import QuantizerConfig, SingleGridConfig, VQGANConfig, VQVAE2Config
from hrvqvae.config.section import flatten

OURS = "ours"
COLUMNS = ("ffhq", "imagenet", "cifar10", "mnist")


def settings(source: str, values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return settings, all from one source, from values by dotted name or nested by section."""
    return {name: (value, source) for name, value in flatten(values).items()}


def select_column(
    rows: Settings, name: str, columns: tuple[str, ...] = COLUMNS
) -> dict[str, tuple[Any, str]]:
    """Pick the values of column `name`."""
    return {
        field: (value[columns.index(name)] if isinstance(value, list) else value, source)
        for field, (value, source) in rows.items()
    }


def mark_as_borrowed(table: Settings) -> dict[str, tuple[Any, str]]:
    """Return the settings of another system's table, with sources such as "as Table 6"."""
    return {name: (value, f"as {source}") for name, (value, source) in table.items()}


def _read_table(source: str, rows: str) -> dict[str, tuple[Any, str]]:
    """Return the settings of a printed table."""
    table: dict[str, tuple[Any, str]] = {}
    for row in filter(str.strip, rows.splitlines()):
        name, *values = row.split()
        # strides are not printed
        exact_source = f"{source} (latent grid)" if name == "model.stride" else source
        table[name] = (values[0] if len(values) == 1 else values, exact_source)
    return table


# VQVAE-2 as first published. The printed codebook sizes contradict each other; taken: 512 codewords
# of width 64.
TABLE_4_COLUMNS = ("ffhq1024", "imagenet256")
TABLE_4 = _read_table(
    "Table 4",
    """
    model.stride               8         4
    model.grids                3         2
    model.hidden_units         128
    model.residual_units       64
    model.kernel               3
    model.quantizer.codewords  512
    model.quantizer.dim        64
    model.quantizer.beta       0.25
    training.max_steps         304_741   2_207_444
    training.polyak_decay      0.9999
    training.learning_rate     2e-4
    """,
)

# The data of HR-VQVAE and of the retrained VQVAE-2.
TABLE_5 = _read_table(
    "Table 5",
    """
    data.dataset         ffhq    imagenet   cifar10  mnist
    data.train_samples   60_000  1_281_167  50_000   60_000
    data.test_samples    10_000  100_000    10_000   10_000
    data.size            256     128        32       28
    data.channels        3       3          3        1
    training.batch_size  32      64         128      128
    training.epochs      400     400        999      999
    """,
)

# HR-VQVAE, and VQVAE-2 as retrained, with three levels each.
_TABLES_6_AND_7 = """
    model.stride            8    4    2   2
    model.hidden_units      128  128  64  64
    model.residual_units    64
    model.kernel            3
    model.quantizer.dim     32   32   16  8
    model.quantizer.beta    0.25
    training.polyak_decay   0.9
    training.learning_rate  3e-3
"""
TABLE_6 = _read_table(
    "Table 6",
    f"""{_TABLES_6_AND_7}
    model.quantizer.levels     3
    model.quantizer.codewords  8    8    8    4
    """,
)
TABLE_7 = _read_table(
    "Table 7",
    f"""{_TABLES_6_AND_7}
    model.grids                3
    model.quantizer.codewords  512  512  512  64
    """,
)

# The priors of HR-VQVAE and of VQVAE-2. The printed number of output stack layers is 0, so the
# network has no such field.
_TABLES_8_AND_9 = """
    prior.network.hidden_units     128  128  64  64
    prior.network.attention_heads  8
    prior.network.kernel           5
    prior.training.polyak_decay    0.99
"""
TABLE_8 = _read_table(
    "Table 8",
    f"""{_TABLES_8_AND_9}
    prior.training.batch_size       32    128   512  512
    prior.network.residual_units    64
    prior.network.attention_layers  4
    prior.network.dropout           0.15  0.15  0.1  0.1
    """,
)
TABLE_9 = _read_table(
    "Table 9",
    f"""{_TABLES_8_AND_9}
    prior.training.batch_size       128,64,32  256,128,64  512  512
    prior.network.residual_units    64         128         64   64
    prior.network.attention_layers  4,1,0
    prior.network.dropout           0.5,0.3,0.25
    """,
)

# Values that the paper does not print. The decays of the codewords and of Adam's second moment suit
# the printed learning rate (docs/paper-tables.md).
_CODEBOOKS = {"model.quantizer.decay": 0.95, "training.adam_beta2": 0.99}
_PIXELSNAIL = {
    "prior.network.residual_blocks": 12,
    "prior.training": {"epochs": 100, "learning_rate": 1e-3, "warmup_steps": 200},
}
_NOT_PRINTED = settings(OURS, _CODEBOOKS | _PIXELSNAIL)

HRVQVAE = System(
    name="hrvqvae",
    title="HR-VQVAE",
    config=SingleGridConfig(),
    settings=TABLE_6 | TABLE_8 | _NOT_PRINTED,
)

# A flat codebook is trained, and planted as a tree (docs/findings.md, "Train flat, plant").
_TREEVQ = {
    "model.quantizer": {"planted": True, "beta": 0.25, "decay": 0.8, "beam": 8},
    "training.optimizer": "muon",
    "prior.network": {"kind": "gpt", "layers": [6, 6, 6, 4]},
    "prior.training": {
        "optimizer": "muon",
        "adam_beta2": 0.99,
        "batch_size": 64,
        "epochs": 100,
        "learning_rate": 3e-3,
        "warmup_steps": 100,
        "polyak_decay": 0.99,
    },
}


def _make_deep(
    dataset: str, about: str, values: dict[str, Any], name: str | None = None
) -> ExtraPreset:
    """Return a TreeVQ preset with fewer positions, each of more levels (docs/findings.md, "Grid
    against depth").
    """
    deep = settings(OURS, {"prior.class_dropout": 0.1} | values)
    name = f"treevq-deep/{name or dataset}"
    return ExtraPreset(name=name, about=about, settings=deep, dataset=dataset)


# Trees that are trained as trees. Of several groups: planted ones have more error with equal beams.
# MNIST's: a planted one has 3% less error, but its codes take a prior 21% more bits after equal
# steps (docs/findings.md, "Train flat, plant").
_TRAINED_TREE = {
    "planted": False,
    "beta": 1.0,
    "level_beta": 0.05,
    "decay": 0.95,
    "coarse_weight": 0.1,
}
_DEEP = {
    "model": {"hidden_units": 128, "residual_blocks": 4},
    "model.quantizer": {
        **_TRAINED_TREE,
        "levels": 12,
        "linked": 4,
        "dim": 48,
        "beam": 16,
        "joint_beam": True,
    },
}
_DEEP_CIFAR10 = {
    **_DEEP,
    "model.stride": 4,
    "prior.network": {"hidden_units": 160, "heads": 5},
    "prior.flip": True,
}
_DEEP_MNIST = {
    "model": {"stride": 4, "padding": 2, "hidden_units": 96},
    "model.quantizer": {**_TRAINED_TREE, "levels": 5, "linked": 5, "dim": 24, "beam": 4},
}
_DEEP_PHOTOS = {
    **_DEEP,
    "model.stride": 8,
    "training.learning_rate": 3e-3,  # in place of the 1e-3 of the data set
    "prior.class_dropout": 0.0,  # it has no classes
}
# Grid and batch were chosen on validation images (docs/own-data.md).
_DEEP_PHOTOS64 = {
    **_DEEP,
    "data": {"size": 64, "labels": True},
    "model.stride": 8,
    "training": {"learning_rate": 3e-3, "batch_size": 32, "evaluation_images": 500},
    "prior.flip": True,
    "prior.training.batch_size": 32,
    "generation.levels": 4,
}
TREEVQ = System(
    name="treevq",
    title="TreeVQ",
    config=SingleGridConfig(),
    # not Table 8: the prior is a transformer
    settings=mark_as_borrowed(TABLE_6) | settings(OURS, _CODEBOOKS | _TREEVQ),
    extras=(
        _make_deep("cifar10", "CIFAR10 as 8x8 positions of 12 levels, for samples", _DEEP_CIFAR10),
        _make_deep("mnist", "MNIST as 8x8 positions of 5 levels, for samples", _DEEP_MNIST),
        _make_deep(
            "imagenet",
            "ImageNet, 128x128, as 16x16 positions of 12 levels",
            _DEEP | {"model.stride": 8},
        ),
        _make_deep(
            "photos", "photographs, 256x256 crops, as 32x32 positions of 12 levels", _DEEP_PHOTOS
        ),
        _make_deep(
            "photos",
            "some thousand photographs in class folders, 64x64, as 8x8 positions of 12 levels",
            _DEEP_PHOTOS64,
            name="photos64",
        ),
    ),
    notes=("TreeVQ is not printed: the HR-VQVAE row, with trees planted on flat codebooks.",),
)

AS_HRVQVAE = mark_as_borrowed(TABLE_6 | TABLE_8) | _NOT_PRINTED
_FLAT = settings(OURS, {"model.quantizer.levels": 1})
# m^3, the leaves of HR-VQVAE
_LEAVES = settings("as Table 6", {"model.quantizer.codewords": [512, 512, 512, 64]})

VQVAE = System(
    name="vqvae",
    title="VQVAE",
    config=SingleGridConfig(quantizer=QuantizerConfig(levels=1)),
    settings=AS_HRVQVAE | _FLAT | _LEAVES,
    notes=(
        "VQVAE is not printed: the HR-VQVAE row with a flat codebook of m^3 codewords: the same"
        " bits per position.",
    ),
)

RQVAE = System(
    name="rqvae",
    title="RQ-VAE",
    settings=AS_HRVQVAE,
    # groups of one level: no links
    config=SingleGridConfig(quantizer=QuantizerConfig(levels=3, codewords=8, linked=1)),
    notes=(
        "RQ-VAE is not printed: the HR-VQVAE row with codebooks that are not linked: the same"
        " bits per position.",
    ),
)

_VQGAN = {
    "model": {
        "adversarial_weight": 0.1,
        "adversarial_start": [10_000, 10_000, 1_000, 1_000],
        "discriminator_units": [64, 64, 32, 32],
        "discriminator_layers": [3, 3, 2, 2],
    },
    "model.quantizer": {"beta": 0.25, "codewords": 1024, "decay": 0.95},
    "training.learning_rate": [3e-4, 3e-4, 1e-3, 1e-3],
    "prior.network": {
        "kind": "gpt",
        "hidden_units": [512, 512, 128, 128],
        "layers": [12, 12, 6, 6],
        "heads": 8,
        "dropout": 0.1,
    },
    "prior.training": {
        "batch_size": 32,
        "polyak_decay": 0.99,
        "epochs": 100,
        "learning_rate": 1e-3,
        "warmup_steps": 200,
    },
}
VQGAN = System(
    name="vqgan",
    title="VQGAN",
    config=VQGANConfig(),
    objective="hrvqvae.models.adversarial:VQGANObjective",
    settings=mark_as_borrowed(TABLE_6) | _FLAT | settings(OURS, _VQGAN),
    notes=(
        "VQGAN is not printed: the HR-VQVAE row's grid and network, 1,024 codewords, a"
        " transformer prior. Its adversarial weight is 0.1: with the usual 0.8 and this"
        " learning rate, an untrained discriminator undoes the decoder at once.",
    ),
)


def _make_original(name: str, about: str, dataset: str, ours: dict[str, Any]) -> ExtraPreset:
    """Return a preset of VQVAE-2 as first published; `ours` are values that Table 4 does not
    print.
    """
    # Table 5 is of the retrained system; for this one its values are our choice.
    table_5 = {field: value for field, (value, _) in select_column(TABLE_5, dataset).items()}
    # without `dataset`: from the system's defaults, not from the preset vqvae2/DATASET
    return ExtraPreset(
        name=f"vqvae2-original/{name}",
        about=about,
        settings=select_column(TABLE_4, name, TABLE_4_COLUMNS)
        | settings(OURS, table_5 | _PIXELSNAIL | ours),
        notes=(
            "Table 4 prints codebook size 64 beside 512 codewords, and three codeword counts"
            " for two levels of ImageNet: 512 codewords of dimension 64 per level are taken.",
        ),
    )


_FFHQ = {"size": 1024, "split": "sorted", "flip": True, "labels": False}
_IMAGENET = {"size": 256, "crop": "random", "flip": True}
VQVAE2 = System(
    name="vqvae2",
    title="VQVAE-2",
    config=VQVAE2Config(),
    model="hrvqvae.models.vqvae2:VQVAE2",
    settings=TABLE_7 | TABLE_9 | _NOT_PRINTED,
    extras=(
        _make_original(
            "ffhq1024",
            "VQVAE-2 as first published, ffhq at 1024 pixels",
            "ffhq",
            {"data": _FFHQ, "training": {"epochs": 0, "batch_size": 8}},
        ),
        _make_original(
            "imagenet256",
            "VQVAE-2 as first published, imagenet at 256 pixels",
            "imagenet",
            {"data": _IMAGENET, "training.epochs": 0},
        ),
    ),
    notes=("Table 9 prints no head count for the middle grid's one attention layer: 8 is ours.",),
)
