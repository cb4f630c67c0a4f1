"""Presets: what they say of themselves, and that they are the tables of the paper. Registries and
their packages.
"""

import dataclasses
import re
from pathlib import Path

import pytest

from hrvqvae.config import bits_per_image, compression_ratio, presets
from hrvqvae.config.registry import DATASETS, PRIORS, SYSTEMS, register_system
from hrvqvae.config.section import flatten
from tests.conftest import approx, cells_of, input_error, parametrize


def test_bits_of_an_uneven_grid():
    model = SYSTEMS.get("hrvqvae").config.replace(
        **{"stride": 4, "quantizer.levels": 2, "quantizer.codewords": 16}
    )
    assert bits_per_image(model, 9, 13) == 3 * 4 * 2 * 4
    assert compression_ratio(model, 1, 9, 13) == approx(8 * 9 * 13 / 96)


UNKNOWN = "zzz hrvqvae/fashion-mnist hrvqvae/ /mnist vqvae2-original/mnist hrvqvae/mnist/"


@parametrize("name", UNKNOWN.split())
def test_unknown_presets(name):
    with input_error("unknown preset"):
        presets.get(name)


PAGE = (Path(__file__).parents[2] / "docs" / "paper-tables.md").read_text()
COLUMNS = """
FFHQ | ffhq
ImageNet | imagenet
CIFAR10 | cifar10
MNIST | mnist
"""
ORIGINAL = """
FFHQ 1024x1024 | ffhq1024
ImageNet 256x256 | imagenet256
"""
AUTOENCODER = """
beta_i | model.quantizer.beta
hidden units | model.hidden_units
residual units | model.residual_units
codebook dimension | model.quantizer.dim
encoder conv filter size | model.kernel
Polyak EMA decay | training.polyak_decay
learning rate | training.learning_rate
"""
PRIOR = """
batch size | prior.training.batch_size
hidden units | prior.network.hidden_units
residual units | prior.network.residual_units
attention layers | prior.network.attention_layers
dropout | prior.network.dropout
Polyak EMA decay | prior.training.polyak_decay
"""
TRAINING = """
training samples | data.train_samples
test samples | data.test_samples
batch size | training.batch_size
epochs | training.epochs
"""
ATTENTION = """
attention heads | prior.network.attention_heads
conv filter size | prior.network.kernel
"""
SIZES = f"{AUTOENCODER}codebook size | model.quantizer.codewords"
ROWS = {  # number of a table -> system, and a field of each row whose value is printed as it is
    4: ("vqvae2-original", f"{AUTOENCODER}training steps | training.max_steps"),
    5: ("hrvqvae", TRAINING),
    6: ("hrvqvae", SIZES),
    7: ("vqvae2", SIZES),
    8: ("hrvqvae", PRIOR.rstrip() + ATTENTION),
    9: ("vqvae2", PRIOR),
}


def as_number(text):
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


@parametrize("table", ROWS)
def test_a_table_of_the_page_is_the_presets(table):
    ((text, below),) = re.findall(
        rf"^\*\*Table {table}\.\*\*.*?\n\n(.*?)\n\n(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL
    )
    # the fields with one value stand below the table
    pattern = r"([a-zA-Z_ ]+) ([\d.e-]+(?:, [\d.e-]+)*)[;.]"
    shared = dict(re.findall(pattern, below.replace("\n", " ")))
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
    )
    printed = {row: dict(zip(head[1:], cells, strict=True)) for row, *cells in rows}
    system, fields = ROWS[table]
    for title, name in cells_of(ORIGINAL if table == 4 else COLUMNS):
        preset = presets.get(f"{system}/{name}")
        values = flatten(preset.config)
        for row, field in cells_of(fields):
            value = values[field]
            if isinstance(value, tuple):
                value = ", ".join(f"{level:.9g}" for level in reversed(value))
            cell = printed[row][title] if row in printed else shared[f" {row}"]
            assert as_number(str(value)) == as_number(cell), (row, title)
            assert preset.sources[field] == f"Table {table}"


REGISTRIES = (SYSTEMS, PRIORS, DATASETS)


@pytest.mark.usefixtures("added_systems")
def test_a_system_is_registered():
    entry = register_system(dataclasses.replace(SYSTEMS.get("vqvae"), name="other"))
    assert SYSTEMS.get("other") is entry
    assert presets.get("other/mnist").config.model.system == "other"
    with input_error("there is a system 'other' already"):
        register_system(entry)


@parametrize("registry", REGISTRIES, ids=lambda registry: registry.noun)
def test_unknown_names(registry):
    for name in registry:
        with input_error(f"unknown {registry.noun} '{name}x': there are {', '.join(registry)}$"):
            registry.get(f"{name}x")
