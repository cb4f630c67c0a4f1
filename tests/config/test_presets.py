"""Presets: what they say of themselves, what follows from them, and that they are the tables of the paper."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hrvqvae.config import Config, Geometry, ModelConfig, QuantizerConfig, bits_per_image, compression_ratio, presets
from hrvqvae.config.registry import DATASETS, SYSTEMS, System
from hrvqvae.config.section import flatten, to_dict
from hrvqvae.config.systems import column
from hrvqvae.utils.errors import InputError


@pytest.mark.parametrize("system", [*SYSTEMS])
def test_a_system_that_is_not_printed_says_so(system: str) -> None:
    preset = presets.get(f"{system}/mnist")
    printed = any(source.startswith("Table") and source != "Table 5" for source in preset.sources.values())
    assert printed == (system in ("hrvqvae", "vqvae2"))
    assert printed or any("not printed" in note for note in preset.notes)


@pytest.mark.parametrize(("data", "column"), [("emoji32", "cifar10"), ("photos", "ffhq")])
def test_a_borrowed_column_says_whose_it_is(data: str, column: str) -> None:
    preset = presets.get(f"hrvqvae/{data}")
    assert preset.source("model.hidden_units") == f"Table 6 ({column})"
    assert preset.source("data.size") == preset.source("prior.network.dropout") == "ours"
    assert preset.config.prior.network.dropout == (0.3,)  # type: ignore[attr-defined]  # of few images


def test_bits_of_a_grid_that_the_stride_does_not_divide() -> None:
    model = SYSTEMS.get("hrvqvae").config.replace(stride=4, quantizer=QuantizerConfig(levels=2, codewords=16))
    assert bits_per_image(model, 9, 13) == 3 * 4 * 2 * 4
    assert compression_ratio(model, 1, 9, 13) == pytest.approx(8 * 9 * 13 / 96)


def test_unknown_presets() -> None:
    for name in ("zzz", "hrvqvae/fashion-mnist", "hrvqvae/", "/mnist", "vqvae2-original/mnist", "hrvqvae/mnist/"):
        with pytest.raises(InputError, match="unknown preset"):
            presets.get(name)


class WithoutPadding(ModelConfig):
    """A system that has no padding, which MNIST's settings give."""

    num_symbols = (2,)
    geometry = Geometry(1, 0, (1,))


def test_a_data_set_gives_a_system_only_the_fields_that_it_has() -> None:
    bare = System(name="bare", title="Bare", config=WithoutPadding(), model="nowhere:Bare", settings={})
    preset = presets.combine(bare, DATASETS.get("mnist"))
    assert preset.config.model == WithoutPadding(system="bare")
    assert (preset.config.data.size, preset.config.training.batch_size) == (28, 128)


def test_a_column_that_is_missing_is_one_line() -> None:
    rows = {"model.dim": ([1, 2], "theirs")}
    assert column(rows, "cifar10", ("mnist", "cifar10")) == {"model.dim": (2, "theirs")}
    for name, columns in (("ffhq", ("mnist", "cifar10")), ("mnist", ("mnist", "cifar10", "ffhq"))):
        with pytest.raises(InputError, match=r"^model\.dim \(theirs\) is \[1, 2\]; it must have a value for each of"):
            column(rows, name, columns)


# docs/paper-tables.md: what it shows as printed is what the presets have


PAGE = (Path(__file__).parents[2] / "docs" / "paper-tables.md").read_text()
COLUMNS = {"FFHQ": "ffhq", "ImageNet": "imagenet", "CIFAR10": "cifar10", "MNIST": "mnist"}
ORIGINAL = {"FFHQ 1024x1024": "ffhq1024", "ImageNet 256x256": "imagenet256"}
Row = str | Callable[[Config], Any]
"""A field, whose source is the table, or what follows from a configuration."""


def table(number: int) -> dict[tuple[str, str], str]:
    """(row, column) -> text of a table of the page."""
    (text,) = re.findall(rf"^\*\*Table {number}\.\*\*.*?\n\n(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return {(row[0], column): cell for row in rows for column, cell in zip(head[1:], row[1:], strict=True)}


def finest_first(values: tuple[Any, ...]) -> str:
    """Values that stand coarse first, in the order of the paper."""
    return ", ".join(f"{value:.9g}" for value in reversed(values))


def grids(config: Config) -> list[str]:
    size = config.data.size
    return [f"{rows}x{columns}" for rows, columns in reversed(config.model.latent_grids(size, size))]


def searched(config: Config) -> str:
    return f"{len(config.model.num_symbols)}x{config.model.num_symbols[0]}"


AUTOENCODER: dict[str, Row] = {
    "latent layers": lambda c: ", ".join(dict.fromkeys(grids(c))),
    "beta_i": "model.quantizer.beta",
    "hidden units": "model.hidden_units",
    "residual units": "model.residual_units",
    "codebook size": "model.quantizer.codewords",
    "codebook dimension": "model.quantizer.dim",
    "codewords in layers": lambda c: ", ".join(map(str, c.model.num_codewords)),
    "codewords needed for each pixel": searched,
    "encoder conv filter size": "model.kernel",
    "optimizer": lambda c: c.training.optimizer.capitalize(),
    "Polyak EMA decay": "training.polyak_decay",
    "learning rate": "training.learning_rate",
}
PRIORS: dict[str, Row] = {
    "latent layers": AUTOENCODER["latent layers"],
    "batch size": "prior.training.batch_size",
    "hidden units": "prior.network.hidden_units",
    "residual units": "prior.network.residual_units",
    "attention layers": "prior.network.attention_layers",
    "conv filter size": "prior.network.kernel",
    "dropout": "prior.network.dropout",
    "output stack layers": lambda c: 0,
    "Polyak EMA decay": "prior.training.polyak_decay",
}
LAYERS: dict[str, Row] = {"layers": lambda c: len(c.model.num_symbols)}
ROWS: dict[int, dict[str, Row]] = {
    4: LAYERS
    | AUTOENCODER
    | {
        "codebook size": lambda c: 64,  # contradicted by the row of codewords, which is taken
        "codewords in layers": lambda c: ", ".join([str(c.model.quantizer.codewords)] * 3),  # for ImageNet's two too
        "codewords needed for each pixel": lambda c: f"3x{c.model.quantizer.codewords}",
        "training steps": "training.max_steps",
    },
    5: {
        "training samples": "data.train_samples",
        "test samples": "data.test_samples",
        "input size": lambda c: f"{c.data.size}x{c.data.size}x{c.data.channels}",
        "batch size": "training.batch_size",
        "epochs": "training.epochs",
        "training steps": lambda c: f"{presets.get(c.name).printed['training_steps']:,}",
    },
    6: LAYERS | AUTOENCODER,
    7: AUTOENCODER,
    8: LAYERS | PRIORS | {"attention heads": "prior.network.attention_heads"},
    9: PRIORS
    | {
        "attention heads": lambda c: f"-, -, {c.prior.network.attention_heads}",
        "conv filter size": lambda c: finest_first((c.prior.network.kernel,) * len(set(grids(c)))),
    },
}
SYSTEM = {4: "vqvae2-original", 5: "hrvqvae", 6: "hrvqvae", 7: "vqvae2", 8: "hrvqvae", 9: "vqvae2"}
OTHERS = {  # fields whose rows are not numbers of their own: what follows from them is
    4: {"model.grids", "model.quantizer.codewords"}, 5: {"data.size", "data.channels", "data.dataset"},
    6: {"model.quantizer.levels"}, 7: {"model.grids"}, 8: set(),
    9: {"prior.network.attention_heads", "prior.network.kernel"},
}  # fmt: skip


def as_number(text: str) -> float | str:
    """A number where the text is one, so that 2e-4 and 0.0002 are equal, and 60,000 and 60000."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


def fields(number: int) -> set[str]:
    """The fields that a table prints."""
    return {of for of in ROWS[number].values() if isinstance(of, str)} | OTHERS[number]


@pytest.mark.parametrize("number", ROWS)
def test_a_table_is_the_presets(number: int) -> None:
    printed = {place: as_number(text) for place, text in table(number).items()}
    names = ORIGINAL if number == 4 else COLUMNS
    ours = {}
    for title, name in names.items():
        preset = presets.get(f"{SYSTEM[number]}/{name}")
        values = dict(flatten(to_dict(preset.config)))
        for row, of in ROWS[number].items():
            value = values[of] if isinstance(of, str) else of(preset.config)
            ours[row, title] = as_number(finest_first(value) if isinstance(value, tuple) else str(value))
        assert {field for field in values if preset.source(field) == f"Table {number}"} == fields(number)
        latent = {field for field in values if preset.source(field) == f"Table {number} (latent grid)"}
        assert latent == ({"model.stride"} if number in (4, 6, 7) else set())
    assert printed == ours


@pytest.mark.parametrize("name", [*presets.names()])
def test_no_table_is_the_source_of_what_it_does_not_print(name: str) -> None:
    preset = presets.get(name)
    for field, source in preset.sources.items():
        for number in re.findall(r"^(?:as )?Table (\d)", source):
            assert field in fields(int(number)) | {"model.stride"}, field
