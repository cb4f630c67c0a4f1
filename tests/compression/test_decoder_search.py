"""Codes chosen by the decoder: less error, and files like any."""

import numpy as np
import pytest
import torch

import hrvqvae
from hrvqvae.compression import decoder_search
from hrvqvae.compression.decoder_search import open_encoder
from hrvqvae.models import tiles
from tests.compression.made import (
    digits,
    single_grid,
    squared_errors,
    untrained,
)
from tests.conftest import (
    generator,
    input_error,
    parametrize,
    same,
)
from tests.trained_run import tiny_systems


def errors(model, images, codes):
    return squared_errors(model.decode(codes, len(codes), images.shape[-2:]), images)


def started(name, mnist_root):
    """Return a system with codebooks that fit digits, and its entropy model."""
    model, entropy_model = untrained(single_grid(name, mnist_root))
    model.initialize(digits(40) / 255, generator())
    return model, entropy_model


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """Gradients and errors as on a machine without bfloat16, so that they are exact."""
    monkeypatch.setattr(decoder_search, "computes_bf16", lambda _: False)


@parametrize("name", ["groups", "vqvae", "rqvae"])
def test_effort_2_never_has_more_error_than_the_nearest_codewords(name, mnist_root):
    """Of groups of levels, a flat codebook, and unlinked levels; images that do not fill a grid."""
    model, entropy_model = started(name, mnist_root)
    encode = open_encoder(model, effort=2)
    for images in (digits(), digits(3)[:, :, 2:7]):
        nearest = model.encode(images)
        chosen = encode(images)
        assert [code.shape for code in chosen] == [code.shape for code in nearest]
        before, after = (errors(model, images, codes) for codes in (nearest, chosen))
        assert (after <= before + 1e-4).all()
        assert after.sum() < 0.997 * before.sum()
    empty = encode(digits(0))
    assert [len(code) for code in empty] == [0] * len(entropy_model.symbols)


def test_a_leaf_is_moved_only_where_it_comes_nearer_to_its_goal(mnist_root):
    """The turn of effort 1 against the equations of docs/method.md, written out for one image."""
    model, _ = started("groups", mnist_root)
    image = digits(1)
    latents = model.latents(image / 255).detach()
    nearest = model.encode(image)
    here = model.quantizer.lookup(nearest).requires_grad_()
    decoded = ((model.pixels(here, (12, 12)) + 1) / 2).clamp(0, 1)
    error = (decoded - image / 255).square().sum()
    (gradient,) = torch.autograd.grad(error, here)
    weight = 2.4 * gradient.square().sum() / (4 * error)
    weight = weight * image.numel() / here.numel()
    goal = (here + 0.7 * (latents - here) - gradient / (2 * weight)).detach()
    leaf = model.quantizer.encode(goal)
    moved = model.quantizer.lookup(leaf)
    is_nearer = (moved - goal).norm(dim=-1) < (here - goal).norm(dim=-1)
    rows, columns = np.indices(nearest[0].shape[1:])
    has_turn = torch.from_numpy((rows + columns) % 2 == 0)
    expected = [
        torch.where(is_nearer & has_turn, *codes) for codes in zip(leaf, nearest, strict=True)
    ]
    chosen = open_encoder(model, effort=1)(image)
    assert same(chosen, expected)
    assert not same(chosen, nearest)


def test_files_hold_these_codes_and_an_image_has_its_own(model, run):
    images = digits(5)
    files = model.compress(images, effort=2)
    expected = model.decode(model.encode(images, effort=2), size=(12, 12))
    assert same(model.decompress(files), expected)
    assert [model.compress(image[None], effort=2)[0] for image in images] == files
    with torch.inference_mode():  # a model that is loaded in it has gradients too
        assert hrvqvae.load(run).compress(images, effort=2) == files


def test_models_of_several_grids_are_told(mnist_root):
    with input_error("one latent grid"):
        open_encoder(untrained(tiny_systems(mnist_root)["vqvae2"])[0], effort=1)


def test_large_images_are_searched_in_tiles_to_codes_about_as_good(model, monkeypatch):
    rows = [torch.cat([*row], -1) for row in digits(30).split(6)]
    image = torch.cat(rows, -2)[None, :, :55, :70]
    encode = open_encoder(model.autoencoder, effort=2)
    at_once = encode(image)
    usual = model.encode(image)
    monkeypatch.setattr(tiles, "_TILE", 24)
    monkeypatch.setattr(tiles, "_MAX_UNDIVIDED", 400)
    in_tiles = encode(image)
    assert not same(in_tiles, at_once)
    least, most, tiled = (
        errors(model.autoencoder, image, codes) for codes in (at_once, usual, in_tiles)
    )
    assert tiled < least + 0.1 * (most - least)
    first = open_encoder(model.autoencoder, levels=2, effort=1)(image)
    assert [code.shape for code in first] == [code.shape for code in usual[:2]]
