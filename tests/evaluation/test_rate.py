"""Bits of codes: under priors whose probabilities are known, by the entropy model as files hold them, of labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from hrvqvae.checkpoints.codemaps import CodeMaps
from hrvqvae.compression import hrv
from hrvqvae.compression.entropy_model import EntropyModel, Geometry
from hrvqvae.compression.learning import fit
from hrvqvae.evaluation.rate import file_bits, label_bits, measure_rate
from hrvqvae.priors.base import Level, LevelPrior, Priors
from hrvqvae.priors.configs import PixelSNAILConfig


def striped(count: int, seed: int) -> CodeMaps:
    """Two levels: a level 1 whose rows repeat, and a level 2 that is drawn."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, 4, (count, 8, 1)).repeat(8, 2)
    return CodeMaps((rows, generator.integers(0, 4, (count, 8, 8))), np.zeros(count, np.int64), ())


def test_the_entropy_model_is_measured_as_files_are_written() -> None:
    bare = EntropyModel("drawn", "0" * 32, Geometry(2, 0, (1, 1)), (4, 4))
    train, test = striped(400, 0), striped(40, 1)
    codec = fit(bare, train.levels, 0.02, lambda _: None)
    found = file_bits(codec, test, (16, 16))
    flat = np.concatenate([level.reshape(40, -1) for level in test.levels], 1).astype(np.int32)
    written = hrv._write(codec, flat, (16, 16), 2)
    assert found == tuple(8 * np.mean([len(file[level]) - 1 for file in written]) for level in (1, 2))
    assert found[0] < 0.5 * 128 < found[1], "what repeats takes fewer bits than what is drawn"


def test_a_label_takes_the_bits_of_its_frequency() -> None:
    counts = [7, 3, 3, 0]  # each once more: 8, 4, 4 and 1 of 17
    assert label_bits(counts, np.array([0, 1])) == pytest.approx(np.log2(17) - 2.5)
    assert label_bits(counts, np.array([3])) == pytest.approx(np.log2(17))


class Knowing(LevelPrior):
    """A prior that gives the class's own code half of the probability."""

    def logits(self, codes: Tensor, coarser: object, label: Tensor | None) -> Tensor:
        assert label is not None
        shares = torch.full((len(codes), self.level.symbols), 0.5 / (self.level.symbols - 1))
        shares[torch.arange(len(codes)), label] = 0.5
        return shares.log()[:, :, None, None].expand(-1, -1, *self.level.grid)


class Paths:
    """A model that is asked for paths alone, which are its codes."""

    def paths(self, codes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return codes


def test_priors_are_given_the_class_and_the_class_stands_beside() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 130)
    maps = CodeMaps((np.broadcast_to(labels[:, None, None], (130, 3, 5)).copy(),), labels, tuple("abcd"))
    prior = Knowing(PixelSNAILConfig(), Level(grid=(3, 5), symbols=4, classes=4))
    priors = Priors((prior,), maps.classes, (1000, 1000, 1000, 1000))
    bare = EntropyModel("drawn", "0" * 32, Geometry(2, 0, (1,)), (4,))
    rate = measure_rate(priors, Paths(), bare, maps, (6, 10), torch.device("cpu"))  # type: ignore[arg-type]
    assert rate.prior == (pytest.approx(15),)
    assert rate.positions == (15,)
    assert rate.files is None
    assert rate.label == pytest.approx(2)
    wrong = dataclasses.replace(maps, labels=(labels + 1) % 4)
    assert measure_rate(priors, Paths(), bare, wrong, (6, 10), torch.device("cpu")).prior[0] > 30  # type: ignore[arg-type]
