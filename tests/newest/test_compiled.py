"""`torch.compile` with inductor on the CPU: each call is one graph, and its codes are the same."""

import pytest
import torch
from torch.testing import assert_close

from hrvqvae.priors.base import build_prior
from tests.conftest import parametrize, random_images, same
from tests.models.small import config_of, model_of
from tests.newest.test_fake_gpu import NETWORKS, inputs_of, prior_config

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's compiler


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    torch.manual_seed(0)


@parametrize("name", ["treevq", "vqvae2"])
@torch.no_grad()
def test_codes_and_images(name):
    model = model_of(config_of(name))
    images = random_images(2, 3, 14, 14)
    codes = model.encode(images)
    compiled = torch.compile(model.encode, fullgraph=True)(images)
    assert same(compiled, codes)
    decode = torch.compile(model.decode, fullgraph=True)
    assert_close(decode(codes), model.decode(codes), rtol=1e-4, atol=1e-5)


@parametrize("kind", NETWORKS)
@torch.no_grad()
def test_logits(kind):
    config, levels = prior_config(kind)
    prior = build_prior(config, levels, classes=10).eval()
    inputs = inputs_of(prior)
    expected = prior.level_logits(*inputs)
    compiled = torch.compile(prior.level_logits, fullgraph=True)(*inputs)
    assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
