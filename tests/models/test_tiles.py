"""Tiles give the codes and pixels of the whole image."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from hrvqvae.config.parsing import override
from hrvqvae.config.presets import get
from hrvqvae.models import tiles
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build, build_progressive_decoder
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.utils.errors import InputError
from tests.conftest import same

SMALL = {"model.hidden_units": "8", "model.residual_units": "8", "model.quantizer.dim": "4"}


tiled = patch.multiple(tiles, _TILE=24, _MAX_UNDIVIDED=400)


def model_of(preset: str, **fields: str) -> Autoencoder:
    torch.manual_seed(0)
    options = SMALL | {name.replace("__", "."): value for name, value in fields.items()}
    config = override(get(preset).config, options)
    model = build(config).eval().requires_grad_(False)
    model.initialize(torch.rand(64, config.data.channels, 32, 32), torch.Generator().manual_seed(0))
    if isinstance(model, SingleGridAutoencoder) and preset.startswith("treevq"):
        decoder = build_progressive_decoder(model, config).requires_grad_(False)
        for values in decoder.parameters():
            values.add_(torch.randn_like(values) * 0.1)
        model.use_progressive_decoder(decoder.eval())
    return model


MODELS = [
    ("treevq/cifar10", {"model__quantizer__beam": "2"}),
    ("treevq-deep/mnist", {"model__quantizer__levels": "3"}),
    ("hrvqvae/mnist", {"model__padding": "3", "model__residual_blocks": "1"}),
    ("vqvae2/cifar10", {"model__padding": "1"}),
    ("hrvqvae/mnist", {"model__padding": "9", "model__residual_blocks": "0", "model__stride": "2"}),
]


def image(model: Autoencoder, height: int, width: int) -> Tensor:
    return torch.rand(1, model.channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("preset", "fields"), MODELS)
@pytest.mark.parametrize("size", [(131, 97), (40, 201)])
def test_tiles_are_the_whole_image(
    preset: str, fields: dict[str, str], size: tuple[int, int]
) -> None:
    model = model_of(preset, **fields)
    pixels = image(model, *size)
    codes = model.encode(pixels)
    whole = [model.decode(codes[:levels], levels, size) for levels in model.prefixes]
    largest = model.decode(codes)
    corner = model.decode(codes, size=(30, 35))
    with tiled:
        assert same(model.encode(pixels), codes)
        for levels, decoded in zip(model.prefixes, whole, strict=True):
            torch.testing.assert_close(
                model.decode(codes[:levels], levels, size), decoded, atol=1e-5, rtol=0
            )
        torch.testing.assert_close(model.decode(codes), largest, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.decode(codes, size=(30, 35)), corner, atol=1e-5, rtol=0)
        with pytest.raises(InputError, match=f"at most {largest.shape[2]}x{largest.shape[3]}"):
            model.decode(codes, size=(largest.shape[2] + 1, 30))
