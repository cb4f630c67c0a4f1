"""docs/paper-tables.md against the presets: what the page shows as printed is what the presets have."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hrvqvae.config import Config, presets

PAGE = (Path(__file__).parent.parent / "docs" / "paper-tables.md").read_text()
COLUMNS = {"FFHQ": "ffhq", "ImageNet": "imagenet", "CIFAR10": "cifar10", "MNIST": "mnist"}
ORIGINAL = {"FFHQ 1024x1024": "ffhq1024", "ImageNet 256x256": "imagenet256"}
Row = Callable[[Config], Any]


def table(number: int) -> dict[tuple[str, str], str]:
    """(row, column) -> text of a table of the page."""
    found = re.search(rf"^\*\*Table {number}\.\*\*.*?\n\n(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines())
    return {(row[0], column): cell for row in rows for column, cell in zip(head[1:], row[1:], strict=True)}


def finest_first(values: tuple[Any, ...]) -> str:
    """Values that stand coarse first, in the order of the paper."""
    return ", ".join(f"{value:g}" for value in reversed(values))


def grids(config: Config) -> list[str]:
    size = config.data.size
    return [f"{rows}x{columns}" for rows, columns in reversed(config.model.latent_grids(size, size))]


def searched(config: Config) -> str:
    return f"{len(config.model.num_symbols)}x{config.model.num_symbols[0]}"


AUTOENCODER: dict[str, Row] = {
    "latent layers": lambda c: ", ".join(dict.fromkeys(grids(c))),
    "beta_i": lambda c: c.model.quantizer.beta,
    "hidden units": lambda c: c.model.hidden_units,
    "residual units": lambda c: c.model.residual_units,
    "codebook size": lambda c: c.model.quantizer.codewords,
    "codebook dimension": lambda c: c.model.quantizer.dim,
    "codewords in layers": lambda c: ", ".join(map(str, c.model.num_codewords)),
    "codewords needed for each pixel": searched,
    "encoder conv filter size": lambda c: c.model.kernel,
    "optimizer": lambda c: c.training.optimizer.capitalize(),
    "Polyak EMA decay": lambda c: c.training.polyak_decay,
    "learning rate": lambda c: c.training.learning_rate,
}
PRIORS: dict[str, Row] = {
    "latent layers": AUTOENCODER["latent layers"],
    "batch size": lambda c: finest_first(c.prior.training.batch_size),
    "hidden units": lambda c: c.prior.network.hidden_units,
    "residual units": lambda c: c.prior.network.residual_units,
    "attention layers": lambda c: finest_first(c.prior.network.attention_layers),
    "conv filter size": lambda c: finest_first((c.prior.network.kernel,) * len(set(grids(c)))),
    "dropout": lambda c: finest_first(c.prior.network.dropout),
    "output stack layers": lambda c: 0,
    "Polyak EMA decay": lambda c: c.prior.training.polyak_decay,
}
LAYERS: dict[str, Row] = {"layers": lambda c: len(c.model.num_symbols)}
ROWS: dict[int, dict[str, Row]] = {
    4: LAYERS
    | AUTOENCODER
    | {
        "codebook size": lambda c: 64,  # contradicted by the row of codewords, which is taken
        "codewords in layers": lambda c: ", ".join([str(c.model.quantizer.codewords)] * 3),  # for ImageNet's two too
        "codewords needed for each pixel": lambda c: f"3x{c.model.quantizer.codewords}",
        "training steps": lambda c: f"{c.training.max_steps:,}",
    },
    5: {
        "training samples": lambda c: f"{c.data.train_samples:,}",
        "test samples": lambda c: f"{c.data.test_samples:,}",
        "input size": lambda c: f"{c.data.size}x{c.data.size}x{c.data.channels}",
        "batch size": lambda c: c.training.batch_size,
        "epochs": lambda c: c.training.epochs,
        "training steps": lambda c: f"{presets.get(c.name).printed['training_steps']:,}",
    },
    6: LAYERS | AUTOENCODER,
    7: AUTOENCODER,
    8: LAYERS | PRIORS | {"attention heads": lambda c: c.prior.network.attention_heads},
    9: PRIORS | {"attention heads": lambda c: f"-, -, {c.prior.network.attention_heads}"},
}
SYSTEM = {4: "vqvae2-original", 5: "hrvqvae", 6: "hrvqvae", 7: "vqvae2", 8: "hrvqvae", 9: "vqvae2"}


def as_number(text: str) -> float | str:
    """A number where the text is one, so that 2e-4 and 0.0002 are equal."""
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.parametrize("number", ROWS)
def test_a_table_is_the_presets(number: int) -> None:
    names = ORIGINAL if number == 4 else COLUMNS
    configs = {title: presets.get(f"{SYSTEM[number]}/{name}").config for title, name in names.items()}
    printed = {place: as_number(text) for place, text in table(number).items()}
    ours = {
        (row, title): as_number(str(of(config)))
        for row, of in ROWS[number].items()
        for title, config in configs.items()
    }
    assert printed == ours
