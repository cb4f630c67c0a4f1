"""Tiles give the codes and pixels of the whole image."""

from unittest.mock import patch

import torch
from torch.testing import assert_close

from benchmarks.common import fields
from hrvqvae.config.parsing import override
from hrvqvae.config.presets import get
from hrvqvae.models import tiles
from hrvqvae.models.build import build, build_progressive_decoder
from tests.conftest import generator, input_error, parametrize, same

SMALL = "hidden_units=8 residual_units=8 quantizer.dim=4 "


def model_of(preset, changes):
    torch.manual_seed(0)
    config = override(get(preset).config, fields("model", SMALL + changes))
    model = build(config).eval().requires_grad_(False)
    model.initialize(torch.rand(64, config.data.channels, 32, 32), generator())
    if preset.startswith("treevq"):
        decoder = build_progressive_decoder(model, config).requires_grad_(False)
        for values in decoder.parameters():
            values.add_(torch.randn_like(values) * 0.1)
        model.use_progressive_decoder(decoder.eval())
    return model


MODELS = [
    ("treevq/cifar10", "quantizer.beam=2"),
    ("treevq-deep/mnist", "quantizer.levels=3"),
    ("hrvqvae/mnist", "padding=3 residual_blocks=1"),
    ("vqvae2/cifar10", "padding=1"),
    ("hrvqvae/mnist", "padding=9 residual_blocks=0 stride=2"),
]


@parametrize("preset, changes", MODELS)
@parametrize("size", [(131, 97), (40, 201)])
def test_tiles_are_the_whole_image(preset, changes, size):
    model = model_of(preset, changes)
    pixels = torch.rand(1, model.channels, *size)
    codes = model.encode(pixels)
    height, width = model.decode(codes).shape[2:]

    def decode():
        prefixes = [model.decode(codes[:levels], levels, size) for levels in model.prefixes]
        return [*prefixes, model.decode(codes), model.decode(codes, size=(30, 35))]

    expected = decode()
    with patch.multiple(tiles, _TILE=24, _MAX_UNDIVIDED=400):
        assert same(model.encode(pixels), codes)
        assert_close(decode(), expected, atol=1e-5, rtol=0)
        with input_error(f"at most {height}x{width}"):
            model.decode(codes, size=(height + 1, 30))
        if len(codes) > 1:
            wider = torch.cat([codes[-1], codes[-1]], 2)
            with input_error(f"level {len(codes)} has codes"):
                model.decode((*codes[:-1], wider))
