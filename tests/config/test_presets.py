"""Presets: what they say of themselves, and what follows from them; tests/test_paper_tables.py has the tables."""

from __future__ import annotations

import dataclasses

import pytest

from hrvqvae.config import ModelConfig, QuantizerConfig, bits_per_image, compression_ratio, presets
from hrvqvae.config.registry import DATASETS, SYSTEMS, System
from hrvqvae.config.tables import column
from hrvqvae.utils.errors import InputError

COMPUTED_STEPS = {"ffhq": 750_000, "imagenet": 8_007_293, "cifar10": 390_234, "mnist": 468_281}
BITS = {"hrvqvae/ffhq": (32 * 32 * 3 * 3, 170.67, 171), "vqvae2/ffhq": ((32 * 32 + 16 * 16 + 8 * 8) * 9, 130.03, 130)}


def test_a_batch_a_level_is_that_levels() -> None:
    prior = presets.get("vqvae2/ffhq").config.prior
    assert [prior.training_of(level).batch_size for level in range(3)] == [128, 64, 32]


@pytest.mark.parametrize("data", ["mnist", "cifar10", "imagenet", "ffhq", "emoji32", "photos"])
def test_vqvae_has_the_bits_of_the_tree(data: str) -> None:
    tree, flat = (presets.derived(presets.get(f"{system}/{data}").config) for system in ("hrvqvae", "vqvae"))
    assert flat["bits_per_image"] == pytest.approx(tree["bits_per_image"])
    assert flat["codewords"] == tree["codewords"][-1:]


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


@pytest.mark.parametrize("data", COMPUTED_STEPS)
def test_training_steps_follow_but_for_the_misprint(data: str) -> None:
    preset = presets.get(f"hrvqvae/{data}")
    assert presets.derived(preset.config)["training_steps"] == COMPUTED_STEPS[data]
    misprint = data == "ffhq"
    assert (preset.printed["training_steps"] != COMPUTED_STEPS[data]) == misprint
    assert any("875,000" in note and "70,000" in note for note in preset.notes) == misprint


@pytest.mark.parametrize("name", BITS)
def test_compression_is_the_printed_one(name: str) -> None:
    preset, (bits, ratio, printed) = presets.get(name), BITS[name]
    derived = presets.derived(preset.config)
    assert (derived["image_bits"], derived["bits_per_image"]) == (1_572_864, bits)
    assert derived["compression_ratio"] == pytest.approx(ratio, abs=0.005)
    assert round(derived["compression_ratio"]) == preset.printed["compression_ratio"] == printed


def test_bits_of_a_grid_that_the_stride_does_not_divide() -> None:
    tree = SYSTEMS.get("hrvqvae").config
    model = dataclasses.replace(tree, stride=4, quantizer=QuantizerConfig(levels=2, codewords=16))  # type: ignore[call-arg]
    assert bits_per_image(model, 9, 13) == 3 * 4 * 2 * 4
    assert compression_ratio(model, 1, 9, 13) == pytest.approx(8 * 9 * 13 / 96)


def test_unknown_presets() -> None:
    for name in ("zzz", "hrvqvae/fashion-mnist", "hrvqvae/", "/mnist", "vqvae2-original/mnist", "hrvqvae/mnist/"):
        with pytest.raises(InputError, match="unknown preset"):
            presets.get(name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithoutPadding(ModelConfig):
    """A system that has no padding, which MNIST's settings give."""

    num_symbols = (2,)

    def latent_grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        return ((height, width),)


def test_a_data_set_gives_a_system_only_the_fields_that_it_has() -> None:
    bare = System(name="bare", title="Bare", config=WithoutPadding(), model="nowhere:Bare", settings={})
    preset = presets.of_dataset(bare, DATASETS.get("mnist"))
    assert preset.config.model == WithoutPadding(system="bare")
    assert (preset.config.data.size, preset.config.training.batch_size) == (28, 128)


def test_a_column_that_is_missing_is_one_line() -> None:
    rows = {"model.dim": ([1, 2], "theirs")}
    assert column(rows, "cifar10", ("mnist", "cifar10")) == {"model.dim": (2, "theirs")}
    for name, columns in (("ffhq", ("mnist", "cifar10")), ("mnist", ("mnist", "cifar10", "ffhq"))):
        with pytest.raises(InputError, match=r"^model\.dim \(theirs\) is \[1, 2\]; it must have a value for each of"):
            column(rows, name, columns)
