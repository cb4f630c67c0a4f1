"""Codes of a split: small, memory-mapped, those of the model, and made again where they are damaged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hrvqvae.checkpoints import codemaps, storage
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_config
from hrvqvae.config import Config, QuantizerConfig, SingleGridConfig
from hrvqvae.models.build import build
from tests.tiny_priors import train_levels


@pytest.mark.parametrize(("symbols", "kind"), [(256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_every_symbol_fits(
    symbols: int, kind: type, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = QuantizerConfig(codewords=symbols, dim=1)
    model = SingleGridConfig(padding=1, hidden_units=2, residual_units=1, residual_blocks=0, quantizer=quantizer)
    config = dataclasses.replace(tiny, model=model)
    autoencoder = build(config)
    last = symbols - 1

    def encode(images: Tensor) -> tuple[Tensor]:
        return (torch.full((len(images), 7, 7), last),)

    monkeypatch.setattr(autoencoder, "encode", encode)
    maps = codemaps.stored_or_extracted(tmp_path, autoencoder, "digest", config, "test")
    assert maps.levels[0].dtype == kind
    (codes,), _ = maps.read(np.arange(40))
    assert bool((codes == last).all())


def test_codes_are_small_memory_mapped_and_those_of_the_model(run: Path) -> None:
    train_levels(run, 1)
    model, config = load_with_config(run)
    folder, digest = RunFolder(run).codes, storage.digest(RunFolder(run).model)
    maps = codemaps.stored(folder, digest, config, "train")
    assert maps is not None
    assert all(level.dtype == np.uint8 and isinstance(level, np.memmap) for level in maps.levels)
    fresh = codemaps.extract(model, config, "train")
    codes, labels = maps.read(np.arange(96))
    again, expected = fresh.read(np.arange(96))
    assert all(torch.equal(one, other) for one, other in zip(codes, again, strict=True))
    assert torch.equal(labels, expected)
    assert codemaps.stored(folder, "another model", config, "train") is None


@pytest.mark.parametrize("damage", ["cut", "gone", "text"])
def test_damaged_codes_are_made_again(damage: str, run: Path) -> None:
    train_levels(run, 1)
    folder = RunFolder(run).codes
    before = (folder / "train-level-2.npy").read_bytes()
    if damage == "gone":
        (folder / "train-labels.npy").unlink()
    else:
        (folder / "train-level-2.npy").write_bytes(before[:100] if damage == "cut" else b"no array")
    train_levels(run, 2)
    assert (folder / "train-level-2.npy").read_bytes() == before
