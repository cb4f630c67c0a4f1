"""The values of the presets: the tables of the paper's appendix, and the systems that take values
from these tables.

Each value has its source. docs/paper-tables.md shows the tables as printed: a column per data set.
Here a row has a field, and a value per column or one for all; "64,32" is a value per level, coarse
first. Strides follow from the latent grids. Systems that are not in the paper take HR-VQVAE's
values ("as Table 6"), so that all systems differ as little as possible.
"""

from typing import Any

from hrvqvae.config.entries import ExtraPreset, Settings, System
from hrvqvae.config.model import QuantizerConfig, SingleGridConfig, VQGANConfig, VQVAE2Config

OURS = "ours"
COLUMNS = ("ffhq", "imagenet", "cifar10", "mnist")


def settings(source: str, rows: str) -> dict[str, tuple[Any, str]]:
    """Return settings, all from one source, from a row per field: "NAME VALUE" for all columns, or
    a value per column.
    """
    table: dict[str, tuple[Any, str]] = {}
    for row in filter(str.strip, rows.splitlines()):
        name, *values = row.split()
        table[name] = (values[0] if len(values) == 1 else values, source)
    return table


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


def _printed(table: str, rows: str) -> dict[str, tuple[Any, str]]:
    """Return the settings of a printed table, whose strides follow from the latent grids."""
    printed = settings(table, rows)
    if "model.stride" in printed:
        stride, _ = printed["model.stride"]
        printed["model.stride"] = (stride, f"{table} (latent grid)")
    return printed


# VQVAE-2 as first published. The printed codebook sizes contradict each other; taken: 512 codewords
# of width 64.
TABLE_4_COLUMNS = ("ffhq1024", "imagenet256")
TABLE_4 = _printed(
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
TABLE_5 = _printed(
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
TABLE_6 = _printed(
    "Table 6",
    f"""{_TABLES_6_AND_7}
    model.quantizer.levels     3
    model.quantizer.codewords  8    8    8    4
    """,
)
TABLE_7 = _printed(
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
TABLE_8 = _printed(
    "Table 8",
    f"""{_TABLES_8_AND_9}
    prior.training.batch_size       32    128   512  512
    prior.network.residual_units    64
    prior.network.attention_layers  4
    prior.network.dropout           0.15  0.15  0.1  0.1
    """,
)
TABLE_9 = _printed(
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
_CODEBOOKS = settings(
    OURS,
    """
    model.quantizer.decay  0.95
    training.adam_beta2    0.99
    """,
)
_PIXELSNAIL = settings(
    OURS,
    """
    prior.network.residual_blocks  12
    prior.training.epochs          100
    prior.training.learning_rate   1e-3
    prior.training.warmup_steps    200
    """,
)
_NOT_PRINTED = _CODEBOOKS | _PIXELSNAIL

HRVQVAE = System(
    name="hrvqvae",
    title="HR-VQVAE",
    config=SingleGridConfig(),
    settings=TABLE_6 | TABLE_8 | _NOT_PRINTED,
)

# A flat codebook is trained, and planted as a tree (docs/findings.md, "Train flat, plant").
_TREEVQ = settings(
    OURS,
    """
    model.quantizer.planted       true
    model.quantizer.beta          0.25
    model.quantizer.decay         0.8
    model.quantizer.beam          8
    training.optimizer            muon
    prior.network.kind            gpt
    prior.network.layers          6  6  6  4
    prior.training.optimizer      muon
    prior.training.adam_beta2     0.99
    prior.training.batch_size     64
    prior.training.epochs         100
    prior.training.learning_rate  3e-3
    prior.training.warmup_steps   100
    prior.training.polyak_decay   0.99
    """,
)

# Trees that are trained as trees. Of several groups: planted ones have more error with equal beams.
# MNIST's: after equal steps a prior needed 21% more bits for the codes of a planted one (one seed;
# docs/findings.md, "Train flat, plant").
_TRAINED_TREE = """
    model.quantizer.planted        false
    model.quantizer.beta           1
    model.quantizer.level_beta     0.05
    model.quantizer.decay          0.95
    model.quantizer.coarse_weight  0.1
    prior.class_dropout            0.1
"""
_DEEP = f"""{_TRAINED_TREE}
    model.hidden_units          128
    model.residual_blocks       4
    model.quantizer.levels      12
    model.quantizer.linked      4
    model.quantizer.dim         48
    model.quantizer.beam        16
    model.quantizer.joint_beam  true
"""
_DEEP_CIFAR10 = f"""{_DEEP}
    model.stride                4
    prior.network.hidden_units  160
    prior.network.heads         5
    prior.flip                  true
"""
_DEEP_MNIST = f"""{_TRAINED_TREE}
    model.stride            4
    model.padding           2
    model.hidden_units      96
    model.quantizer.levels  5
    model.quantizer.linked  5
    model.quantizer.dim     24
    model.quantizer.beam    4
"""
_DEEP_IMAGENET = f"""{_DEEP}
    model.stride  8
"""
# The data set has a learning rate of 1e-3, and no classes.
_DEEP_PHOTOS = f"""{_DEEP}
    model.stride            8
    training.learning_rate  3e-3
    prior.class_dropout     0
"""
# Grid and batch were chosen on validation images (docs/own-data.md).
_DEEP_PHOTOS64 = f"""{_DEEP}
    data.size                   64
    data.labels                 true
    model.stride                8
    training.learning_rate      3e-3
    training.batch_size         32
    training.evaluation_images  500
    prior.flip                  true
    prior.training.batch_size   32
    generation.levels           4
    generation.augment          true
"""


def _make_deep(name: str, dataset: str, about: str, rows: str) -> ExtraPreset:
    """Return a TreeVQ preset with fewer positions, each of more levels (docs/findings.md, "Grid
    against depth").
    """
    name = f"treevq-deep/{name}"
    return ExtraPreset(name=name, about=about, settings=settings(OURS, rows), dataset=dataset)


TREEVQ = System(
    name="treevq",
    title="TreeVQ",
    config=SingleGridConfig(),
    # not Table 8: the prior is a transformer
    settings=mark_as_borrowed(TABLE_6) | _CODEBOOKS | _TREEVQ,
    extras=(
        _make_deep(
            "cifar10",
            "cifar10",
            "CIFAR10 as 8x8 positions of 12 levels, for samples",
            _DEEP_CIFAR10,
        ),
        _make_deep(
            "mnist",
            "mnist",
            "MNIST as 8x8 positions of 5 levels, for samples",
            _DEEP_MNIST,
        ),
        _make_deep(
            "imagenet",
            "imagenet",
            "ImageNet, 128x128, as 16x16 positions of 12 levels",
            _DEEP_IMAGENET,
        ),
        _make_deep(
            "photos",
            "photos",
            "photographs, 256x256 crops, as 32x32 positions of 12 levels",
            _DEEP_PHOTOS,
        ),
        _make_deep(
            "photos64",
            "photos",
            "some thousand photographs in class folders, 64x64, as 8x8 positions of 12 levels",
            _DEEP_PHOTOS64,
        ),
    ),
    notes=("TreeVQ is not printed: the HR-VQVAE row, with trees planted on flat codebooks.",),
)

AS_HRVQVAE = mark_as_borrowed(TABLE_6 | TABLE_8) | _NOT_PRINTED
_FLAT = settings(OURS, "model.quantizer.levels 1")
# m^3, the leaves of HR-VQVAE
_LEAVES = settings("as Table 6", "model.quantizer.codewords 512 512 512 64")

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

_VQGAN = settings(
    OURS,
    """
    model.adversarial_weight      0.1
    model.adversarial_start       10_000  10_000  1_000  1_000
    model.discriminator_units     64      64      32     32
    model.discriminator_layers    3       3       2      2
    model.quantizer.beta          0.25
    model.quantizer.codewords     1024
    model.quantizer.decay         0.95
    training.learning_rate        3e-4    3e-4    1e-3   1e-3
    prior.network.kind            gpt
    prior.network.hidden_units    512     512     128    128
    prior.network.layers          12      12      6      6
    prior.network.heads           8
    prior.network.dropout         0.1
    prior.training.batch_size     32
    prior.training.polyak_decay   0.99
    prior.training.epochs         100
    prior.training.learning_rate  1e-3
    prior.training.warmup_steps   200
    """,
)
VQGAN = System(
    name="vqgan",
    title="VQGAN",
    config=VQGANConfig(),
    objective="hrvqvae.models.adversarial:VQGANObjective",
    settings=mark_as_borrowed(TABLE_6) | _FLAT | _VQGAN,
    notes=(
        "VQGAN is not printed: the HR-VQVAE row's grid and network, 1,024 codewords, a"
        " transformer prior. Its adversarial weight is 0.1: with the usual 0.8 and this"
        " learning rate, an untrained discriminator undoes the decoder at once.",
    ),
)


def _make_original(name: str, about: str, dataset: str, ours: str) -> ExtraPreset:
    """Return a preset of VQVAE-2 as first published; `ours` are values that Table 4 does not
    print.
    """
    # Table 5 is of the retrained system; for this one its values are our choice.
    table_5 = select_column(TABLE_5, dataset)
    data = {field: (value, OURS) for field, (value, _) in table_5.items()}
    # without `dataset`: from the system's defaults, not from the preset vqvae2/DATASET
    return ExtraPreset(
        name=f"vqvae2-original/{name}",
        about=about,
        settings=select_column(TABLE_4, name, TABLE_4_COLUMNS)
        | data
        | _PIXELSNAIL
        | settings(OURS, ours),
        notes=(
            "Table 4 prints codebook size 64 beside 512 codewords, and three codeword counts"
            " for two levels of ImageNet: 512 codewords of dimension 64 per level are taken.",
        ),
    )


_FFHQ = """
    data.size            1024
    data.split           sorted
    data.flip            true
    data.labels          false
    training.epochs      0
    training.batch_size  8
"""
_IMAGENET = """
    data.size        256
    data.crop        random
    data.flip        true
    training.epochs  0
"""
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
            _FFHQ,
        ),
        _make_original(
            "imagenet256",
            "VQVAE-2 as first published, imagenet at 256 pixels",
            "imagenet",
            _IMAGENET,
        ),
    ),
    notes=("Table 9 prints no head count for the middle grid's one attention layer: 8 is ours.",),
)
