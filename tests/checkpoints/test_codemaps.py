"""Codes of a split: in the smallest type, memory-mapped, and those of the model. Damage to them: test_damage.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hrvqvae.checkpoints import codemaps
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_digest
from hrvqvae.config import Config, QuantizerConfig
from hrvqvae.models.build import build


@pytest.mark.parametrize(("symbols", "kind"), [(256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_every_symbol_fits(
    symbols: int, kind: type, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = QuantizerConfig(levels=1, codewords=symbols, dim=1)
    config = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, quantizer=quantizer))  # type: ignore[call-arg]
    autoencoder = build(config)
    last = symbols - 1

    def encode(images: Tensor) -> tuple[Tensor]:
        return (torch.full((len(images), 7, 7), last),)

    monkeypatch.setattr(autoencoder, "encode", encode)
    maps = codemaps.stored_or_extracted(tmp_path, autoencoder, "digest", config, "test")
    assert maps.levels[0].dtype == kind
    assert isinstance(maps.levels[0], np.memmap)
    (codes,), _ = maps.read(np.arange(40))
    assert bool((codes == last).all())


def test_codes_are_those_of_the_model(whole: Path) -> None:
    model, config, digest = load_with_digest(whole)
    maps = codemaps.stored(RunFolder(whole).codes, digest, config, "train")
    assert maps is not None
    fresh = codemaps.extract(model, config, "train")
    codes, labels = maps.read(np.arange(96))
    again, expected = fresh.read(np.arange(96))
    assert all(torch.equal(one, other) for one, other in zip(codes, again, strict=True))
    assert torch.equal(labels, expected)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, size=11))
    assert codemaps.stored(RunFolder(whole).codes, digest, other, "train") is None
