"""dead-code restart of dead codewords: where they go, what becomes of their subtrees, and which vectors are drawn from."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize.codebook import EMACodebook

CONFIG = QuantizerConfig(levels=3, codewords=4, dim=2, decay=0.9)
FAR = 50.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(seed: int = 1) -> Tensor:
    return torch.randn(8, 16, 16, 2, generator=generator(seed))


def with_a_dead_codeword(update: str = "ema") -> tuple[ResidualQuantizer, Tensor]:
    """A tree that fits its latents, but for codeword 2 of level 1: it, and all below it, lies where nothing is."""
    quantizer, z = ResidualQuantizer(dataclasses.replace(CONFIG, update=update)), latents_of()  # type: ignore[arg-type]
    quantizer.initialize(z, generator())
    for level, codebook in enumerate(quantizer.levels):
        below = torch.arange(4**level) + 2 * 4**level
        codebook.set_codewords(below, torch.full((len(below), 2), FAR), torch.full((len(below),), 1e-4))
    return quantizer, z


def error(quantizer: ResidualQuantizer, z: Tensor) -> Tensor:
    """Squared error of each vector (N,)."""
    return (quantizer.lookup(quantizer.encode(z)) - z).square().sum(-1).flatten()


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_revived_subtree_codes_what_is_left_as_well_as_its_source_did(update: str) -> None:
    quantizer, z = with_a_dead_codeword(update)
    before = error(quantizer, z)
    assert quantizer.restart_dead_codes(z, generator(3)) == 1
    near = quantizer.encode(z)[0].flatten() == 2
    assert near.sum() > 20
    after = error(quantizer, z)
    assert after[near].mean() < 1.5 * before[near].mean()
    assert torch.equal(after[~near], before[~near])
    # The fault that this was: the codeword alone was moved, and below it lay what belonged to the place that it left.
    alone, _ = with_a_dead_codeword(update)
    moved = quantizer.levels[0].codewords.detach()[0, 2:3]
    alone.levels[0].set_codewords(torch.tensor([2]), moved, torch.tensor([100.0]))
    assert error(alone, z)[near].mean() > 100 * before[near].mean()


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_subtree_is_copied_with_its_counts_in_proportion(update: str) -> None:
    quantizer, z = with_a_dead_codeword(update)
    first, mean = quantizer.encode(z)[0].flatten(), float(quantizer.levels[0].count.mean())
    quantizer.restart_dead_codes(z, generator(3))
    at = (z.reshape(-1, 2) == quantizer.levels[0].codewords.detach()[0, 2]).all(1).nonzero()
    source = int(first[int(at[0])])
    weight = quantizer.levels[0].count[0, 2] / quantizer.levels[0].count[0, source]
    assert float(quantizer.levels[0].count[0, 2]) == pytest.approx(mean)
    for level, codebook in enumerate(quantizer.levels[1:]):
        copies = codebook.codewords.detach().view(4, 4**level, 4, 2)
        assert torch.equal(copies[2], copies[source])
        counts = codebook.count.view(4, 4**level, 4)
        torch.testing.assert_close(counts[2], counts[source] * weight)
        if isinstance(codebook, EMACodebook):
            torch.testing.assert_close(codebook.total, codebook.codewords * codebook.count.unsqueeze(-1))


def test_several_levels_are_revived_at_once() -> None:
    """Dead at level 1, and at level 2 below codewords that live: all are placed by what is left there."""
    quantizer, z = with_a_dead_codeword()
    level = quantizer.levels[1]
    dead = torch.tensor([0 * 4 + 1, 1 * 4 + 3, 3 * 4 + 0])
    level.set_codewords(dead, torch.full((3, 2), FAR), torch.full((3,), 1e-4))
    third = (dead[:, None] * 4 + torch.arange(4)).flatten()
    quantizer.levels[2].set_codewords(third, torch.full((12, 2), FAR), torch.full((12,), 1e-4))
    assert quantizer.restart_dead_codes(z, generator(3)) == 4
    for moved in dead.tolist():
        assert level.codewords.view(-1, 2)[moved].abs().max() < 10
        assert quantizer.levels[2].codewords[moved].abs().max() < 10
    assert error(quantizer, z).max() < 10


def test_vectors_of_dead_codewords_are_not_drawn() -> None:
    """A codeword that is moved would leave its vectors, or be moved to where it is, with the subtree that it had."""
    quantizer, z = with_a_dead_codeword()
    codebook = quantizer.levels[0]
    outlier = torch.full((2,), FAR + 1)
    z[:, :, :2] = outlier  # an eighth of the vectors, and the dead codeword's only ones
    for seed in range(20):
        twin = ResidualQuantizer(CONFIG)
        twin.load_state_dict(quantizer.state_dict())
        twin.restart_dead_codes(z, generator(seed))
        assert twin.levels[0].codewords[0, 2].abs().max() < 10, "drawn from the living"
    codebook.count.zero_()
    assert quantizer.restart_dead_codes(z, generator()) >= 0, "a codebook without any count is left alone"
    assert codebook.codewords[0, 2].min() == FAR


def test_as_many_are_revived_as_there_are_vectors() -> None:
    quantizer = ResidualQuantizer(QuantizerConfig(codewords=8, dim=2))
    quantizer.initialize(torch.randn(100, 2, generator=generator()), generator())
    quantizer.codebook.count[0, 1:] = 0
    quantizer.codebook.set_codewords(torch.arange(1, 8), torch.full((7, 2), FAR), torch.zeros(7))
    latents = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    assert quantizer.restart_dead_codes(latents, generator()) == 3
    moved = {tuple(one.tolist()) for one in quantizer.codebook.codewords[0] if one.max() < 1}
    assert {tuple(one) for one in latents.tolist()} <= moved
