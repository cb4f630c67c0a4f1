"""Presets against the printed tables, copied by hand once more, and derived figures against printed ones."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import pytest

from hrvqvae.config import (
    ModelConfig,
    QuantizerConfig,
    bits_per_image,
    compression_ratio,
    flatten,
    presets,
    to_dict,
)
from hrvqvae.config.registry import DATASETS, SYSTEMS, System
from hrvqvae.config.tables import column
from hrvqvae.models.hrvqvae.config import HRVQVAEConfig
from hrvqvae.utils.errors import InputError

COLUMNS = ("ffhq", "imagenet", "cifar10", "mnist")
GRIDS = (32, 32, 16, 16)
CODEWORDS = ((8, 64, 512), (8, 64, 512), (8, 64, 512), (4, 16, 64))
STEPS = (875_000, 8_007_293, 390_234, 468_281)

# Field -> a value for each column. A value a level is printed bottom to top, and is turned round.
TABLE_5 = {
    "data.train_samples": (60_000, 1_281_167, 50_000, 60_000),
    "data.test_samples": (10_000, 100_000, 10_000, 10_000),
    "data.size": (256, 128, 32, 28),
    "data.channels": (3, 3, 3, 1),
    "data.dataset": COLUMNS,
    "training.batch_size": (32, 64, 128, 128),
    "training.epochs": (400, 400, 999, 999),
}
TABLE_6 = {
    "model.quantizer.levels": (3, 3, 3, 3),
    "model.quantizer.beta": (0.25, 0.25, 0.25, 0.25),
    "model.hidden_units": (128, 128, 64, 64),
    "model.residual_units": (64, 64, 64, 64),
    "model.quantizer.codewords": (8, 8, 8, 4),
    "model.quantizer.dim": (32, 32, 16, 8),
    "model.kernel": (3, 3, 3, 3),
    "training.learning_rate": (3e-3, 3e-3, 3e-3, 3e-3),
    "training.polyak_decay": (0.9, 0.9, 0.9, 0.9),
}
TABLE_7 = {
    "model.grids": (3, 3, 3, 3),
    "model.quantizer.beta": (0.25, 0.25, 0.25, 0.25),
    "model.hidden_units": (128, 128, 64, 64),
    "model.residual_units": (64, 64, 64, 64),
    "model.quantizer.codewords": (512, 512, 512, 64),
    "model.quantizer.dim": (32, 32, 16, 8),
    "model.kernel": (3, 3, 3, 3),
    "training.learning_rate": (3e-3, 3e-3, 3e-3, 3e-3),
    "training.polyak_decay": (0.9, 0.9, 0.9, 0.9),
}
TABLE_8 = {
    "prior.training.batch_size": ((32,), (128,), (512,), (512,)),
    "prior.network.hidden_units": (128, 128, 64, 64),
    "prior.network.residual_units": (64, 64, 64, 64),
    "prior.network.attention_layers": ((4,),) * 4,
    "prior.network.attention_heads": (8, 8, 8, 8),
    "prior.network.kernel": (5, 5, 5, 5),
    "prior.network.dropout": ((0.15,), (0.15,), (0.1,), (0.1,)),
    "prior.training.polyak_decay": (0.99, 0.99, 0.99, 0.99),
}
TABLE_9 = {
    "prior.training.batch_size": ((32, 64, 128)[::-1], (64, 128, 256)[::-1], (512,), (512,)),
    "prior.network.hidden_units": (128, 128, 64, 64),
    "prior.network.residual_units": (64, 128, 64, 64),
    "prior.network.attention_layers": ((0, 1, 4)[::-1],) * 4,
    "prior.network.attention_heads": (8, 8, 8, 8),
    "prior.network.kernel": (5, 5, 5, 5),
    "prior.network.dropout": ((0.25, 0.3, 0.5)[::-1],) * 4,
    "prior.training.polyak_decay": (0.99, 0.99, 0.99, 0.99),
}
# Columns: FFHQ at 1024 pixels, ImageNet at 256 pixels.
TABLE_4 = {
    "model.grids": (3, 2),
    "model.quantizer.beta": (0.25, 0.25),
    "model.hidden_units": (128, 128),
    "model.residual_units": (64, 64),
    "model.quantizer.codewords": (512, 512),
    "model.quantizer.dim": (64, 64),
    "model.kernel": (3, 3),
    "training.learning_rate": (2e-4, 2e-4),
    "training.max_steps": (304_741, 2_207_444),
    "training.polyak_decay": (0.9999, 0.9999),
}
PRINTED = {4: TABLE_4, 5: TABLE_5, 6: TABLE_6, 7: TABLE_7, 8: TABLE_8, 9: TABLE_9}
PRINTED_GRIDS = ((32, 16, 8), (32, 16, 8), (16, 8, 4), (16, 8, 4))  # Table 7, bottom to top


def check_printed(preset: presets.Preset, tables: tuple[int, ...], column: int) -> None:
    """Every value that these tables print, and that they are the source of it."""
    values = dict(flatten(to_dict(preset.config)))
    for number in tables:
        for name, row in PRINTED[number].items():
            assert (values[name], preset.source(name)) == (row[column], f"Table {number}"), name


@pytest.mark.parametrize("column", range(4))
def test_printed_values(column: int) -> None:
    preset = presets.get(f"hrvqvae/{COLUMNS[column]}")
    check_printed(preset, (5, 6, 8), column)
    derived = presets.derived(preset.config)
    assert derived["latent_grids"] == ((GRIDS[column],) * 2,) * 3
    assert preset.source("model.stride") == "Table 6 (latent grid)"
    assert derived["codewords"] == CODEWORDS[column]
    assert derived["codewords_searched"] == 3 * CODEWORDS[column][0]


@pytest.mark.parametrize("column", range(4))
def test_printed_values_of_vqvae2(column: int) -> None:
    preset = presets.get(f"vqvae2/{COLUMNS[column]}")
    check_printed(preset, (5, 7, 9), column)
    derived = presets.derived(preset.config)
    assert derived["latent_grids"] == tuple((side, side) for side in PRINTED_GRIDS[column][::-1])
    assert preset.source("model.stride") == "Table 7 (latent grid)"
    assert derived["codewords"] == (row := (TABLE_7["model.quantizer.codewords"][column],) * 3)
    assert derived["codewords_searched"] == sum(row)


def test_a_batch_a_level_is_that_levels() -> None:
    prior = presets.get("vqvae2/ffhq").config.prior
    assert [prior.training_of(level).batch_size for level in range(3)] == [128, 64, 32]


ORIGINAL = [(0, "ffhq1024", ((32, 32), (64, 64), (128, 128))), (1, "imagenet256", ((32, 32), (64, 64)))]


@pytest.mark.parametrize(("column", "data", "grids"), ORIGINAL)
def test_vqvae2_as_first_published(column: int, data: str, grids: tuple[tuple[int, int], ...]) -> None:
    preset = presets.get(f"vqvae2-original/{data}")
    check_printed(preset, (4,), column)
    assert presets.derived(preset.config)["latent_grids"] == grids
    assert "512 codewords of dimension 64" in preset.notes[0]


@pytest.mark.parametrize("data", ["mnist", "cifar10", "imagenet", "ffhq", "emoji32", "photos"])
def test_vqvae_has_the_bits_of_the_tree(data: str) -> None:
    tree, flat = (presets.derived(presets.get(f"{system}/{data}").config) for system in ("hrvqvae", "vqvae"))
    assert flat["bits_per_image"] == pytest.approx(tree["bits_per_image"])
    assert flat["codewords"] == tree["codewords"][-1:]


@pytest.mark.parametrize("name", [*presets.names()])
def test_no_table_is_the_source_of_what_it_does_not_print(name: str) -> None:
    preset = presets.get(name)
    for field, row in presets.describe(preset)["values"].items():
        table = re.match(r"(?:as )?Table (\d)", row["source"])
        assert table is None or field in PRINTED[int(table[1])] or field == "model.stride", field


@pytest.mark.parametrize("system", [*SYSTEMS])
def test_a_system_that_is_not_printed_says_so(system: str) -> None:
    preset = presets.get(f"{system}/mnist")
    of_model = [preset.source(name) for name, _ in flatten(to_dict(preset.config)) if name.startswith("model.")]
    printed = any(source.startswith("Table") for source in of_model)
    assert printed == (system in ("hrvqvae", "vqvae2"))
    assert printed or any("not printed" in note for note in preset.notes)


@pytest.mark.parametrize("data", ["emoji32", "photos"])
def test_a_borrowed_column_says_whose_it_is(data: str) -> None:
    preset, column = presets.get(f"hrvqvae/{data}"), {"emoji32": "cifar10", "photos": "ffhq"}[data]
    assert preset.source("model.hidden_units") == f"Table 6 ({column})"
    assert preset.source("data.size") == "ours"


@pytest.mark.parametrize("column", range(4))
def test_training_steps_follow_but_for_the_misprint(column: int) -> None:
    preset = presets.get(f"hrvqvae/{COLUMNS[column]}")
    assert preset.printed["training_steps"] == STEPS[column]
    computed = presets.derived(preset.config)["training_steps"]
    if COLUMNS[column] == "ffhq":
        assert computed == 750_000
        assert any("875,000" in note and "70,000" in note for note in preset.notes)
    else:
        assert computed == STEPS[column]


@pytest.mark.parametrize("column", range(4))
def test_vqgan_is_ours_but_for_its_input(column: int) -> None:
    preset = presets.get(f"vqgan/{COLUMNS[column]}")
    printed = {field for field in presets.describe(preset)["values"] if preset.source(field) != "ours"}
    assert printed == set(TABLE_5)
    assert presets.derived(preset.config)["latent_grids"] == ((GRIDS[column],) * 2,)
    assert preset.config.model.num_codewords == (1024,)


def test_compression_is_the_printed_one() -> None:
    derived = presets.derived(presets.get("hrvqvae/ffhq").config)
    assert derived["image_bits"] == 1_572_864
    assert derived["bits_per_image"] == 32 * 32 * 3 * 3
    assert derived["compression_ratio"] == pytest.approx(170.67, abs=0.005)
    assert round(derived["compression_ratio"]) == presets.get("hrvqvae/ffhq").printed["compression_ratio"] == 171


def test_compression_of_vqvae2_is_the_printed_one() -> None:
    preset = presets.get("vqvae2/ffhq")
    derived = presets.derived(preset.config)
    assert derived["bits_per_image"] == (32 * 32 + 16 * 16 + 8 * 8) * 9
    assert derived["compression_ratio"] == pytest.approx(130.03, abs=0.005)
    assert round(derived["compression_ratio"]) == preset.printed["compression_ratio"] == 130


def test_bits_of_a_grid_that_the_stride_does_not_divide() -> None:
    model = HRVQVAEConfig(stride=4, quantizer=QuantizerConfig(levels=2, codewords=16))
    assert bits_per_image(model, 9, 13) == 3 * 4 * 2 * 4
    assert compression_ratio(model, 1, 9, 13) == pytest.approx(8 * 9 * 13 / 96)


def test_near_names_are_offered() -> None:
    with pytest.raises(InputError, match="unknown preset 'hrvqvae/minst': did you mean hrvqvae/mnist"):
        presets.get("hrvqvae/minst")
    with pytest.raises(InputError, match="unknown preset 'zzz': hrvqvae presets lists them"):
        presets.get("zzz")
    for known in ("hrvqvae/fashion-mnist", "hrvqvae/", "/mnist", "vqvae2-original/mnist", "hrvqvae/mnist/"):
        with pytest.raises(InputError, match="unknown preset"):
            presets.get(known)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithoutPadding(ModelConfig):
    """A system that knows nothing of padding, which MNIST's settings give."""

    system: Literal["bare"] = "bare"

    def latent_grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        return ((height, width),)

    @property
    def num_symbols(self) -> tuple[int, ...]:
        return (2,)

    @property
    def num_codewords(self) -> tuple[int, ...]:
        return (2,)


def test_a_data_set_gives_a_system_only_the_fields_that_it_has() -> None:
    bare = System(name="bare", title="Bare", source="", config=WithoutPadding(), model="nowhere:Bare", settings={})
    preset = presets.of_dataset(bare, DATASETS.get("mnist"))
    assert preset.config.model == WithoutPadding()
    assert (preset.config.data.size, preset.config.training.batch_size) == (28, 128)


def test_a_table_without_the_column_is_one_line() -> None:
    rows = {"model.dim": ([1, 2], "theirs")}
    assert column(rows, "cifar10", ("mnist", "cifar10")) == {"model.dim": (2, "theirs")}
    for name, columns in (("ffhq", ("mnist", "cifar10")), ("mnist", ("mnist", "cifar10", "ffhq"))):
        with pytest.raises(InputError, match=r"^model\.dim \(theirs\) is \[1, 2\]; it must have a value for each of"):
            column(rows, name, columns)
