"""The contract of every system."""

import math

import pytest
import torch
from torch.testing import assert_close

from hrvqvae.checkpoints.folder import save_model
from hrvqvae.config import Config, DataConfig
from hrvqvae.model import Model
from tests.conftest import (
    generator,
    input_error,
    parametrize,
    random_images,
    same,
    state_of,
)
from tests.models.small import EVERY, config_of, model_of


@pytest.fixture(params=EVERY)
def model(request):
    return model_of(config_of(request.param))


@parametrize(
    "name, changes, size",
    [
        *((name, {}, size) for name in EVERY for size in ((14, 14), (9, 17), (1, 1))),
        ("hrvqvae", {"stride": 16, "padding": 3}, (5, 40)),
        ("vqvae2", {"stride": 8, "padding": 2}, (37, 11)),
    ],
)
def test_codes_and_images_of_any_size(name, changes, size):
    config = config_of(name, **changes)
    model = model_of(config)
    images = torch.rand(2, 3, *size)
    codes = model.encode(images)
    result = model(images)
    assert same(codes, result.codes)
    assert tuple(code.shape[1:] for code in codes) == config.geometry.grids(*size)
    for values, limits in (
        (codes, config.num_symbols),
        (model.codeword_indices(codes), config.num_codewords),
    ):
        for value, limit in zip(values, limits, strict=True):
            assert len(value) == 2
            assert value.dtype == torch.int64
            assert 0 <= value.min() <= value.max() < limit
    for levels in model.prefixes:
        prefix = model.decode(codes[:levels], levels=levels, size=size).detach()
        assert prefix.shape == images.shape
        assert 0 <= prefix.min() <= prefix.max() <= 1
        assert same(prefix, model.decode(codes, levels=levels)[..., : size[0], : size[1]])
    assert levels == len(codes)
    assert_close(prefix, result.images.clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch(model):
    """Given as bytes, or alone as floats."""
    images = random_images(4, 3, 14, 14)
    alone = model.encode(images[1:2] / 255)
    assert same([codes[1:2] for codes in model.encode(images)], alone)


def test_what_it_refuses(model):
    codes = model.encode(torch.rand(1, 3, 8, 8))
    last = len(codes)
    calls = [((), None, "level"), *((codes, levels, "level") for levels in (0, -1, last + 1))]
    if last > 1:
        calls.append((codes[:1], model.prefixes[-1], "only 1$"))
    for code in (-2, model.config.num_symbols[-1]):
        damaged = (*codes[:-1], torch.full_like(codes[-1], code))
        calls.append((damaged, None, f"level {last} has code {code}; codes lie in"))
    for given, levels, message in calls:
        with input_error(message):
            model.decode(given, levels=levels)
    with input_error("size 50x50 does not fit"):
        model.decode(codes, size=(50, 50))


def test_images_outside_the_contract():
    model = model_of(config_of("vqvae"))
    black = torch.zeros(1, 3, 8, 8)
    for images, message in (
        (black[0], "shape"),
        (torch.rand(8), "shape"),
        (black - 0.1, "values from -0.1"),
        (black + torch.nan, "nan"),
        (black.long(), "int64"),
        (black[..., :0, :], "0, 8"),
        (black[:, :1], "takes .B, 3, Y, X"),
        (black + 1.1, r"values from .* expected \[0, 1\]"),
    ):
        for call in (model.encode, model):
            with input_error(message):
                call(images)


def test_every_parameter_learns_from_the_losses(model):
    losses = model.train()(torch.rand(8, 3, 14, 14)).losses
    sum(losses.values()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad.abs().sum() > 0, name


def test_training_alone_changes_a_model(model):
    """By its moving averages."""
    images = torch.rand(8, 3, 14, 14)
    before = state_of(model)
    model.decode(model(images).codes)
    model.train().encode(images)
    assert same(model, before)
    model(images)
    assert not same(model, before)


def test_a_start_is_seeded_and_dead_codewords_come_back(model):
    assert same(model, model_of(model.config))
    counts = [buffer for name, buffer in model.named_buffers() if name.endswith(".count")]
    for count in counts:
        count.view(-1)[0] = 0
    restarted = model.restart_dead_codes(torch.rand(8, 3, 14, 14), generator())
    assert bool(restarted) == bool(counts) == bool(model.config.restart_every)


@parametrize("name", ["hrvqvae", "groups", "rqvae", "sizes"])
def test_a_beam_of_all_sums_finds_the_nearest(name, tmp_path):
    """Through all groups of levels, whatever the search of the training."""
    config = Config(data=DataConfig(channels=3), model=config_of(name))
    trained = model_of(config.model)
    save_model(tmp_path / "model.safetensors", config, trained.state_dict(), 0)
    model = Model(tmp_path, beam=1_000).autoencoder
    images = torch.rand(2, 3, 14, 14)
    sizes = config.model.num_symbols
    every = torch.unravel_index(torch.arange(math.prod(sizes)), sizes)
    sums = trained.quantizer.lookup(every)
    nearest = torch.cdist(trained.latents(images).flatten(0, -2), sums).argmin(1)
    expected = [code[nearest] for code in every]
    assert same([code.flatten() for code in model.encode(images)], expected)
