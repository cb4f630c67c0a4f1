"""Rivals from outside the package: their quantizers, presets, and the way through the commands."""

import importlib
from itertools import product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch.testing import assert_close

import hrvqvae
from benchmarks.common import fields
from benchmarks.laboratory.systems import codewords_searched
from hrvqvae.config import presets
from hrvqvae.config.schema import bits_per_image
from tests.benchmarks.conftest import forget_rivals
from tests.conftest import (
    check_refusals,
    generator,
    nonfinite_error,
    normal,
    parametrize,
    random_images,
    same,
    state_of,
)

KINDS = ("simvq", "lfq", "qinco", "vq")


def library(rivals, **fields):
    torch.manual_seed(0)
    return rivals.LibraryQuantizer(rivals.LibraryQuantizerConfig(dim=6, **fields))


def fsq(rivals, *levels, dim=6):
    return rivals.FSQQuantizer(rivals.FSQQuantizerConfig(channel_levels=levels, dim=dim))


@settings(max_examples=40)
@given(levels=st.lists(st.integers(3, 9), min_size=1, max_size=4), seed=st.integers(0, 10**6))
def test_fsq_agrees_with_the_paper(levels, seed):
    """Section 3.1 and appendix A.1: bound, round, and number the grid points."""
    z = 2 * normal(2, 3, 3, len(levels), seed=seed)
    quantizer = fsq(importlib.import_module("benchmarks.rivals"), *levels, dim=len(levels))
    forget_rivals()
    result = quantizer(z)
    counts = np.array(levels)
    half = (counts - 1) * (1 + 1e-3) / 2
    offset = np.where(counts % 2 == 0, 0.5, 0.0)
    bounded = np.tanh(z.double().numpy() + np.arctanh(offset / half)) * half - offset
    digits = np.round(bounded).astype(int) + counts // 2
    radix = np.cumprod([1, *levels[:-1]])
    assert_array_equal(result.codes[0], (digits * radix).sum(-1))
    # evenly spaced in [-1, 1]
    assert_allclose(result.latents, digits / (counts // 2) - 1, atol=1e-6)
    assert dict(result.losses) == {}


def test_simvq_s_loss_is_on_the_scale_of_ours(rivals):
    """||sg[z] - e||^2 + 0.25 ||z - sg[e]||^2, summed over the batch."""
    quantizer = library(rivals, name="simvq", codewords=8)
    z = normal(2, 3, 4, 6).requires_grad_()
    result = quantizer(z)
    difference = (z - quantizer.lookup(result.codes)).detach()
    loss = result.losses["auxiliary"]
    assert_close(loss.detach(), 1.25 * difference.square().sum(), rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(loss, z)
    assert_close(gradient, 0.5 * difference, rtol=1e-4, atol=1e-4)


@parametrize("name, levels", [("fsq", 1), *product(KINDS, (1, 3))])
def test_the_contract_of_a_quantizer(rivals, name, levels):
    """Codes give what training decodes; nothing is drawn or changed."""
    if name == "fsq":
        quantizer = fsq(rivals, 5, 3, 4)
    else:
        quantizer = library(rivals, name=name, codewords=4, levels=levels)
    quantizer.initialize(normal(4, 8, 8, 6), generator())
    z = normal(2, 3, 4, 6)
    before = state_of(quantizer)
    draws = torch.get_rng_state()
    codes = quantizer.train().encode(z)
    result = quantizer.eval()(z)
    assert same(torch.get_rng_state(), draws)
    assert same(quantizer.state_dict(), before)
    assert [(code.shape, code.dtype) for code in codes] == [((2, 3, 4), torch.int64)] * levels
    assert same(codes, result.codes)
    assert_close(quantizer.lookup(codes), result.latents, rtol=1e-4, atol=1e-4)
    prefixes = [quantizer.lookup(codes[:count]) for count in range(1, levels + 1)]
    assert len({tuple(prefix.flatten().tolist()) for prefix in prefixes}) == levels
    with nonfinite_error("a latent is NaN"):
        quantizer.train().encode(z[:1] * torch.nan)
    assert quantizer.training


@parametrize("system, searched", [("fsq", 0), ("vqpytorch", 8**3)])
def test_presets_have_the_tree_s_network_and_bits(rivals, system, searched):
    tree = presets.get("hrvqvae/imagenet").config
    config = presets.get(f"{system}/imagenet").config
    assert config.replace(name=tree.name, model=tree.model) == tree
    size = config.data.image_size
    assert bits_per_image(config.model, *size) == bits_per_image(tree.model, *size)
    assert codewords_searched(config.model) == searched


SMALL = fields("data", "size=12 workers=0") | fields("training", "batch_size=8 device=cpu")
SMALL |= fields("model", "hidden_units=8 residual_units=8 quantizer.name=vq")


def test_a_run_of_a_rival_from_training_to_files(rivals, mnist_root, tmp_path, monkeypatch):
    """Without the import every command says in one line what to import."""
    monkeypatch.setenv("HRVQVAE_DATA", str(mnist_root))
    run = tmp_path / "run"
    model = hrvqvae.train("vqpytorch/mnist", out=run, max_steps=2, **SMALL)
    images = random_images(3, 1, 12, 12)
    expected = model.decode(model.encode(images))
    files = model.compress(images)
    assert same(torch.stack(hrvqvae.load(run).decompress(files)), expected)
    forget_rivals()
    check_refusals(f"evaluate {run} | unknown system")
