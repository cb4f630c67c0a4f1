"""Codes of a split: in the smallest type, memory-mapped, and those of the model. Damage to them: test_damage.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hrvqvae.checkpoints import codemaps
from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.checkpoints.loading import load_with_digest
from hrvqvae.config import Config
from hrvqvae.models.build import build
from tests.conftest import with_data, with_quantizer


@pytest.mark.parametrize(("symbols", "kind"), [(256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_every_symbol_fits(symbols: int, kind: type, tiny: Config, tmp_path: Path) -> None:
    config = with_quantizer(tiny, levels=1, codewords=symbols, dim=1)
    model = build(config)
    model.encode = lambda images: (torch.full((len(images), 7, 7), symbols - 1),)  # type: ignore[method-assign]
    maps = codemaps.stored_or_extracted(tmp_path, model, "digest", config, "test")
    assert maps.levels[0].dtype == kind
    assert isinstance(maps.levels[0], np.memmap)
    (codes,), _ = maps.read(np.arange(40))
    assert bool((codes == symbols - 1).all())


def test_codes_are_those_of_the_model(whole: Path) -> None:
    model, config, digest = load_with_digest(whole)
    maps = codemaps.stored(RunFolder(whole).codes, digest, config, "train")
    assert maps is not None
    codes, labels = maps.read(np.arange(96))
    again, expected = codemaps.extract(model, config, "train").read(np.arange(96))
    assert all(torch.equal(one, other) for one, other in zip(codes, again, strict=True))
    assert torch.equal(labels, expected)
    assert codemaps.stored(RunFolder(whole).codes, digest, with_data(config, size=11), "train") is None
    assert codemaps.stored(RunFolder(whole).codes, "another", config, "train") is None
