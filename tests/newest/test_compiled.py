"""`torch.compile` with inductor on the CPU: each call is one graph, and its codes are the same."""

from pathlib import Path

import pytest
import torch

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.data.batches import Batch
from hrvqvae.models.build import build
from hrvqvae.priors.base import build_prior
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.state import TrainState
from tests.conftest import with_training
from tests.models.small import config_of, model_of
from tests.newest.test_fake_gpu import NETWORKS, config_for, prior_config

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's compiler


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["treevq", "vqvae2"])
@torch.no_grad()
def test_codes_and_images(name):
    model = model_of(config_of(name))
    images = torch.randint(256, (2, 3, 14, 14), dtype=torch.uint8)
    codes = model.encode(images)
    compiled = torch.compile(model.encode, fullgraph=True)(images)
    for level, expected in zip(compiled, codes, strict=True):
        assert torch.equal(level, expected)
    decode = torch.compile(model.decode, fullgraph=True)
    torch.testing.assert_close(decode(codes), model.decode(codes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_logits(kind):
    config, levels = prior_config(kind)
    prior = build_prior(config, levels, classes=10).eval()
    codes = [torch.randint(level.symbols, (2, *level.grid)) for level in prior.levels]
    coarser = [torch.randint(size, (2, *prior.level.grid)) for size in prior.level.coarser]
    label = torch.zeros(2, dtype=torch.long)
    expected = prior.level_logits(codes, coarser, label)
    compiled = torch.compile(prior.level_logits, fullgraph=True)(codes, coarser, label)
    for level, logits in zip(compiled, expected, strict=True):
        torch.testing.assert_close(level, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["treevq", "vqgan"])
def test_a_training_keeps_its_tensors_in_place(name):
    """A CUDA graph is captured with addresses: weights, codebooks, moments and averages stay."""
    config = with_training(config_for(name), device="cpu", max_steps=102)
    task = AutoencoderTask(config, RunFolder(Path("run")))
    model = build(config).train()
    state = TrainState.start(model, config.training, task.build_objective())
    batch = Batch(torch.randint(256, (4, 3, 14, 14), dtype=torch.uint8), torch.zeros(4).long())
    addresses = []
    for _ in range(102):
        task.step(state, batch)
        state.step += 1
        named = state.tensors()
        addresses.append({key: named[key].data_ptr() for key in named})
    assert addresses[1] == addresses[-1]
