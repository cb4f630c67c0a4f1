"""VQVAE and VQVAE-2: forward paths put together by hand, and what every system promises."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import pad

from hrvqvae.config import Config, DataConfig, QuantizerConfig
from hrvqvae.config.model import ModelConfig
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build
from hrvqvae.models.hrvqvae.config import HRVQVAEConfig
from hrvqvae.models.treevq.config import TreeVQConfig
from hrvqvae.models.vqgan.config import VQGANConfig
from hrvqvae.models.vqgan.model import VQGAN
from hrvqvae.models.vqvae.config import VQVAEConfig
from hrvqvae.models.vqvae.model import VQVAE
from hrvqvae.models.vqvae2.config import VQVAE2Config
from hrvqvae.models.vqvae2.model import VQVAE2
from hrvqvae.training.state import count_parameters
from hrvqvae.utils.errors import InputError

FLAT = QuantizerConfig(codewords=6, dim=4, init_vectors=500, beta=0.3)
TREE = QuantizerConfig(levels=2, codewords=3, dim=4, init_vectors=500)
SMALL = {"stride": 2, "padding": 1, "hidden_units": 8, "residual_units": 6, "residual_blocks": 1}
SYSTEMS: dict[str, ModelConfig] = {
    "hrvqvae": HRVQVAEConfig(**SMALL, quantizer=TREE),
    "treevq": TreeVQConfig(**SMALL, quantizer=dataclasses.replace(TREE, beam=2, coarse_weight=0.1)),
    "vqvae": VQVAEConfig(**SMALL, quantizer=FLAT),
    "vqvae2": VQVAE2Config(**SMALL, grids=3, quantizer=FLAT),
    "vqgan": VQGANConfig(**SMALL, quantizer=FLAT, perceptual="none"),
}


def model_of(system: str, seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    model = build(Config(data=DataConfig(channels=3), model=SYSTEMS[system]))
    model.initialize(torch.rand(8, 3, 14, 14), torch.Generator().manual_seed(seed))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("size", [(14, 14), (9, 17), (1, 1)])
def test_codes_and_images_of_any_size(system: str, size: tuple[int, int]) -> None:
    model, config = model_of(system), SYSTEMS[system]
    images = torch.rand(2, 3, *size)
    codes = model.encode(images)
    assert [tuple(code.shape[1:]) for code in codes] == [*config.latent_grids(*size)]
    assert all(int(code.min()) >= 0 and int(code.max()) < n for code, n in zip(codes, config.num_symbols, strict=True))
    assert all(int(path.max()) < n for path, n in zip(model.paths(codes), config.num_codewords, strict=True))
    decoded = model.decode(codes, size=size)
    result = model(images)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded, result.images.clamp(0, 1))
    assert all(torch.equal(one, other) for one, other in zip(codes, result.codes, strict=True))
    error = (result.images - images).square().mean() * 4
    torch.testing.assert_close(result.losses["reconstruction"], error)
    for levels in model.prefixes:
        assert model.decode(codes, levels=levels, size=size).shape == images.shape
    assert torch.equal(model.decode(codes, levels=model.prefixes[-1], size=size), decoded)


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_image_does_not_depend_on_its_batch(system: str) -> None:
    model, images = model_of(system), torch.rand(4, 3, 14, 14)
    together, alone = model.encode(images), model.encode(images[1:2])
    assert all(torch.equal(one[1:2], other) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize(("system", "kind"), [("vqvae", VQVAE), ("vqgan", VQGAN)])
def test_one_flat_codebook_by_hand(system: str, kind: type[VQVAE | VQGAN]) -> None:
    model, images = model_of(system), torch.rand(2, 3, 9, 9)
    assert isinstance(model, kind)
    grown = pad(images * 2 - 1, (1, 2, 1, 2), mode="replicate")
    z = model.encoder(grown).permute(0, 2, 3, 1)
    words = model.quantizer.codebook.codewords[0]
    code = (z[..., None, :] - words).square().sum(-1).argmin(-1)
    result = model(images)
    assert torch.equal(result.codes[0], code)
    output = model.decoder(words[code].permute(0, 3, 1, 2))[..., 1:10, 1:10]
    torch.testing.assert_close(result.images, (output + 1) / 2)
    commitment = 0.3 * (z - words[code]).square().sum() / images.numel()
    assert set(result.losses) == {"reconstruction", "commitment"}
    torch.testing.assert_close(result.losses["commitment"], commitment)


def test_vqvae2_by_hand() -> None:
    """Bottom-up features, then top-down: each grid is coded with what the one above it decodes to."""
    model, images = model_of("vqvae2"), torch.rand(2, 3, 14, 14)
    assert isinstance(model, VQVAE2)
    bottom = model.encoders[0](pad(images * 2 - 1, (1, 1, 1, 1), mode="replicate"))
    middle = model.encoders[1](bottom)
    top = model.encoders[2](middle)
    codes, words, commitment = [], [], []
    above = None
    for level, features in enumerate((top, middle, bottom)):
        if above is not None:
            features = torch.cat([features, above], 1)
        z = model.projections[level](features).permute(0, 2, 3, 1)
        book = model.quantizers[level].codebook.codewords[0]
        code = (z[..., None, :] - book).square().sum(-1).argmin(-1)
        codes.append(code)
        words.append(book[code].permute(0, 3, 1, 2))
        commitment.append(0.3 * (z - book[code]).square().sum() / images.numel())
        if level < 2:
            above = model.conditions[level](words[-1])
    raised = [up(word) for up, word in zip(model.upsamplings, words, strict=True)]
    assert [tuple(one.shape[-2:]) for one in raised] == [(8, 8)] * 3
    output = model.decoder(torch.cat(raised, 1))[..., 1:15, 1:15]
    result = model(images)
    assert all(torch.equal(one, other) for one, other in zip(result.codes, codes, strict=True))
    torch.testing.assert_close(result.images, (output + 1) / 2, rtol=1e-4, atol=1e-5)
    assert set(result.losses) == {"reconstruction", "commitment_1", "commitment_2", "commitment_3"}
    for level, loss in enumerate(commitment, start=1):
        torch.testing.assert_close(result.losses[f"commitment_{level}"], loss, rtol=1e-4, atol=1e-6)


def test_every_grid_of_vqvae2_sends_its_gradient_to_the_encoder() -> None:
    model = model_of("vqvae2").requires_grad_(True)
    for level in (1, 2, 3):
        model.zero_grad()
        model(torch.rand(2, 3, 14, 14)).losses[f"commitment_{level}"].backward()
        assert next(model.parameters()).grad.abs().sum() > 0
    model.zero_grad()
    model(torch.rand(2, 3, 14, 14)).losses["reconstruction"].backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_vqvae2_refuses_a_prefix() -> None:
    model = model_of("vqvae2")
    codes = model.encode(torch.rand(1, 3, 14, 14))
    with pytest.raises(InputError, match="vqvae2 decodes its 3 grids together; asked for: 2 levels"):
        model.decode(codes, levels=2)
    with pytest.raises(InputError, match="vqvae2 decodes its 3 grids together; asked for: 1 level$"):
        model.decode(codes[:1])
    with pytest.raises(InputError, match="level 2 has codes"):
        model.decode((codes[0], codes[0], codes[2]))
    with pytest.raises(InputError, match=r"level 3 has code 6; codes lie in 0..5"):
        model.decode((codes[0], codes[1], codes[2] * 0 + 6))


@pytest.mark.parametrize("system", SYSTEMS)
def test_dead_codewords_come_back_in_every_system(system: str) -> None:
    model = model_of(system)
    for name, one in model.named_buffers():
        if name.endswith("count"):
            one.view(-1)[0] = 0
    assert model.restart_dead_codes(torch.rand(8, 3, 14, 14), torch.Generator().manual_seed(0)) >= 1


@pytest.mark.parametrize("leaves", [8, 512, 4096])
def test_a_random_start_has_codewords_apart_from_each_other(leaves: int) -> None:
    """Without the k-means start a codebook is not smaller than it says; copies could never be told apart."""
    child = round(leaves ** (1 / 3))
    start = {"dim": 4, "init_vectors": 0}
    small = {"stride": 2, "hidden_units": 8, "residual_units": 8, "residual_blocks": 0}
    images = torch.rand(1, 1, 8, 8)
    flat = build(Config(model=VQVAEConfig(**small, quantizer=QuantizerConfig(codewords=leaves, **start))))
    flat.initialize(images, torch.Generator().manual_seed(0))
    assert len(flat.get_buffer("quantizer.codebook.codewords")[0].unique(dim=0)) == leaves
    tree = build(Config(model=HRVQVAEConfig(**small, quantizer=QuantizerConfig(levels=3, codewords=child, **start))))
    tree.initialize(images, torch.Generator().manual_seed(0))
    books = tree.get_buffer("quantizer.codebooks.2.codewords")
    assert sum(len(book.unique(dim=0)) for book in books) > 0.95 * leaves


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_codewords_count_as_parameters_however_they_learn(update: str) -> None:
    quantizer = QuantizerConfig(codewords=6, dim=4, update=update)  # type: ignore[arg-type]
    model = build(Config(data=DataConfig(channels=3), model=VQVAEConfig(**SMALL, quantizer=quantizer)))
    network = sum(one.numel() for part in (model.encoder, model.decoder) for one in part.parameters())  # type: ignore[union-attr]
    assert count_parameters(model) == network + 6 * 4
