"""The flat quantizer against an oracle in numpy: codes, codewords, losses and their gradients, the moving averages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hrvqvae.config import QuantizerConfig
from hrvqvae.quantize import ResidualQuantizer
from hrvqvae.quantize.search import search_flat
from hrvqvae.quantize.search.chunked import search_flat_chunked
from hrvqvae.utils.errors import InputError, NonFiniteError

CONFIG = QuantizerConfig(codewords=7, dim=3, beta=0.4, decay=0.9)


def quantizer_of(config: QuantizerConfig = CONFIG, seed: int = 0) -> ResidualQuantizer:
    generator = torch.Generator().manual_seed(seed)
    quantizer = ResidualQuantizer(config)
    quantizer.initialize(torch.randn(200, config.dim, generator=generator), generator)
    return quantizer.eval()


def latents_of(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_codes_losses_and_gradients(update: str) -> None:
    quantizer = quantizer_of(dataclasses.replace(CONFIG, update=update))  # type: ignore[arg-type]
    latents = latents_of().requires_grad_()
    result = quantizer(latents)
    z, c = latents.detach().double().numpy().reshape(-1, 3), quantizer.codebook.codewords[0].detach().double().numpy()
    nearest = ((z[:, None] - c[None]) ** 2).sum(-1).argmin(1)
    assert np.array_equal(result.codes[0].numpy().ravel(), nearest)
    assert np.allclose(result.latents.detach().numpy().reshape(-1, 3), c[nearest], atol=1e-6)
    error = ((z - c[nearest]) ** 2).sum()
    assert float(result.losses["commitment"].detach()) == pytest.approx(0.4 * error, rel=1e-5)
    assert set(result.losses) == ({"commitment"} if update == "ema" else {"commitment", "codebook"})
    total = torch.stack(list(result.losses.values())).sum() + (result.latents * 3).sum()
    total.backward()
    assert np.allclose(latents.grad.numpy().reshape(-1, 3), 0.8 * (z - c[nearest]) + 3, atol=1e-5)
    if update == "gradient":
        expected = np.zeros_like(c)
        np.add.at(expected, nearest, 2 * (c[nearest] - z))
        assert np.allclose(quantizer.codebook.codewords.grad.numpy()[0], expected, atol=1e-4)


def test_moving_averages_follow_in_training_alone() -> None:
    quantizer, latents = quantizer_of(), latents_of()
    before = quantizer.codebook.codewords.clone()
    count, total = quantizer.codebook.count.double().numpy()[0], quantizer.codebook.total.double().numpy()[0]
    quantizer(latents)
    assert torch.equal(quantizer.codebook.codewords, before)
    codes = quantizer.train()(latents).codes[0].numpy().ravel()
    z = latents.double().numpy().reshape(-1, 3)
    count = 0.9 * count + 0.1 * np.bincount(codes, minlength=7)
    sums = np.zeros((7, 3))
    np.add.at(sums, codes, z)
    total = 0.9 * total + 0.1 * sums
    assert np.allclose(quantizer.codebook.codewords[0].numpy(), total / count[:, None], atol=1e-5)


def test_lookup_inverts_encode() -> None:
    quantizer, latents = quantizer_of(), latents_of()
    codes = quantizer.encode(latents)
    torch.testing.assert_close(quantizer.lookup(codes), quantizer(latents).latents)
    assert quantizer.paths(codes) == codes


def test_dead_codewords_are_revived() -> None:
    quantizer, latents = quantizer_of(), latents_of()
    quantizer.codebook.set_codewords(torch.tensor([3]), torch.full((1, 3), 50.0), torch.tensor([0.0]))
    assert quantizer.restart_dead_codes(latents, torch.Generator().manual_seed(0)) == 1
    assert (quantizer.codebook.codewords[0, 3] - latents.reshape(-1, 3)).abs().sum(1).min() == 0


def test_chunks_find_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, codebook = torch.randn(3000, 4, generator=generator), torch.randn(50, 4, generator=generator)
    assert torch.equal(search_flat_chunked(latents, codebook), search_flat(latents, codebook))


def test_bad_latents_and_codes() -> None:
    quantizer = quantizer_of()
    with pytest.raises(NonFiniteError):
        quantizer(latents_of() * float("nan"))
    code = torch.zeros(1, 2, 2, dtype=torch.long)
    with pytest.raises(InputError, match="2 levels of codes given"):
        quantizer.lookup((code, code))
    with pytest.raises(InputError, match=r"code 7; codes lie in 0..6"):
        quantizer.lookup((code + 7,))
    with pytest.raises(InputError, match="float32"):
        quantizer.lookup((code.float(),))
