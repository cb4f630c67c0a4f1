"""Every system, prior and the layer on a GPU that is not there: no mixture of devices, no wait in a
training step.

torch's autograd engine refuses CUDA tensors without a driver, so a step here gets gradients of zero
in its place. The backward pass itself runs on the device "meta": of the layer here, of the systems
in test_loop. A sampler draws on the CPU by design: of a GPU it asks `level_logits` alone.
"""

import dataclasses
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from hrvqvae.checkpoints.folder import RunFolder
from hrvqvae.config import Config, DataConfig, TrainingConfig
from hrvqvae.data.batches import Batch
from hrvqvae.models.adversarial import SampleObjective
from hrvqvae.models.build import (
    build,
    build_objective,
    build_progressive_decoder,
    build_sample_decoder,
)
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.priors.base import build_prior
from hrvqvae.priors.configs import GPTConfig, PixelSNAILConfig
from hrvqvae.quantize.layer import TreeVQ
from hrvqvae.training.autoencoder import AutoencoderTask
from hrvqvae.training.decoder import PrefixTask, SampleTask
from hrvqvae.training.prior import CodeBatch, PriorTask
from hrvqvae.training.state import TrainState
from hrvqvae.utils.device import Compute
from tests.conftest import parametrize
from tests.models.small import EVERY, config_of
from tests.newest.waits import fake_gpu

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="torch is built without CUDA"
)


def config_for(name):
    changes = {"adversarial_start": 0} if name == "vqgan" else {}
    training = TrainingConfig(max_steps=10, device="cuda", precision="fp32", log_every=1)
    data = DataConfig(channels=3, size=14)
    return Config(data=data, model=config_of(name, **changes), training=training)


def images_on(device, kind=torch.uint8):
    return torch.zeros(4, 3, 14, 14, dtype=kind, device=device)


def labels():
    return torch.zeros(4, dtype=torch.long)


def check_step(waits, task, state, batch):
    """Check that a step of a task, with gradients of zero, waits for nothing; return its
    metrics.
    """
    modules = [network.module for network in state.networks.values()]

    def backward(loss, *_, **__):
        for parameter in (weight for module in modules for weight in module.parameters()):
            parameter.grad = torch.zeros_like(parameter)

    def grad(loss, inputs, **_):
        return (torch.zeros_like(inputs),)

    waits.places.clear()
    with patch.object(Tensor, "backward", backward), patch("torch.autograd.grad", grad):
        metrics = task.step(state, batch)
    assert waits.places == []
    return metrics


def no_autocast():
    """Let autocast do nothing: torch has none for the device "meta"."""
    return patch("torch.autocast", lambda *_, **__: nullcontext())


@parametrize("name", EVERY)
def test_a_training_step_of_a_system_waits_for_nothing(name):
    with fake_gpu() as waits:
        config = config_for(name)
        task = AutoencoderTask(config, RunFolder(Path("run")))
        task.compute = Compute(config.training)
        with torch.device("cuda"):
            model = build(config).train()
            task.objective = build_objective(config)
        state = TrainState.start(model, config.training, task.objective.auxiliary)
        metrics = check_step(waits, task, state, Batch(images_on("cpu"), labels()))
        model(images_on("cuda", torch.float32))  # as in a training loop of somebody's own
        assert waits.places == []
        assert all(metric.is_cuda for metric in metrics.values() if isinstance(metric, Tensor))


@parametrize("name", EVERY)
def test_codes_and_images_of_a_system(name):
    """uint8 images are encoded without a wait; floats wait once for the check of their range."""
    with fake_gpu(value=0) as waits, torch.no_grad():
        with torch.device("cuda"):
            model = build(config_for(name)).eval()
        waits.places.clear()
        codes = model.encode(images_on("cuda"))
        assert waits.places == []
        assert len(model.encode(images_on("cuda", torch.float32))) == len(codes)
        assert all("models/base.py" in place for place in waits.places)
        decoded = model.decode(codes)
        assert decoded.device.type == "cuda"
        assert tuple(decoded.shape[:2]) == (4, 3)


def test_a_training_step_of_a_progressive_decoder():
    with fake_gpu(value=0) as waits:
        config = config_for("hrvqvae")
        with torch.device("cuda"), patch.object(nn.Module, "to", lambda module, *_: module):
            model = build(config).eval()
            assert isinstance(model, SingleGridAutoencoder)
            decoder = build_progressive_decoder(model, config).train()
        task = PrefixTask.__new__(PrefixTask)
        task.config = config
        task.compute = Compute(config.training)
        task.model = model
        state = TrainState.start(decoder, config.training)
        check_step(waits, task, state, Batch(images_on("cpu"), labels()))


def test_a_training_step_of_a_decoder_of_samples():
    with fake_gpu(value=0) as waits:
        changes = {
            "generation.levels": 2,
            "generation.classes": 10,
            "generation.adversarial_start": 0,
        }
        config = config_for("hrvqvae").replace(**changes)
        task = SampleTask.__new__(SampleTask)
        task.config = config
        task.compute = Compute(config.training)
        with ExitStack() as stack:
            stack.enter_context(torch.device("cuda"))
            for owner, name in ((nn.Module, "to"), (nn.Module, "load_state_dict")):
                stack.enter_context(patch.object(owner, name, lambda module, *_, **__: module))
            stack.enter_context(patch("torch.load"))
            task.model = build(config).eval()
            decoder = build_sample_decoder(task.model, config).train()
            task.objective = SampleObjective(config)
        grid = config.model.geometry.grids(14, 14)[0]
        drawn = torch.zeros(2, 6, *grid, dtype=torch.long, device="cpu")
        task.samples = drawn, torch.zeros(6, dtype=torch.long, device="cpu")
        state = TrainState.start(decoder, config.training, task.objective.auxiliary)
        metrics = check_step(waits, task, state, Batch(images_on("cpu"), labels()))
        assert all(metric.is_cuda for metric in metrics.values() if isinstance(metric, Tensor))
        assert "adaptive_weight" in metrics


NETWORKS = {
    "pixelsnail": PixelSNAILConfig(
        hidden_units=16, residual_units=8, residual_blocks=1, attention_layers=(1,)
    ),
    "gpt": GPTConfig(hidden_units=12, layers=2, heads=3, dropout=0.3, path_units=5),
}


def prior_config(kind):
    """Return a configuration with a prior of a kind, and the levels of the prior."""
    config = config_for("hrvqvae")
    prior = dataclasses.replace(config.prior, class_dropout=0.1, network=NETWORKS[kind])
    levels = range(3) if kind == "gpt" else range(2, 3)
    return dataclasses.replace(config, prior=prior), levels


def inputs_of(prior):
    """Return codes of the levels of a prior, coarser codes and labels."""
    codes = tuple(torch.randint(level.symbols, (4, *level.grid)) for level in prior.levels)
    grid = (4, *prior.level.grid)
    coarser = tuple(torch.randint(size, grid) for size in prior.level.coarser)
    return codes, coarser, labels()


@parametrize("kind", NETWORKS)
def test_a_training_step_of_a_prior(kind):
    with fake_gpu() as waits:
        config, levels = prior_config(kind)
        with torch.device("cuda"):
            prior = build_prior(config, levels, classes=10).train()
        task = PriorTask("", levels, config, (None, config, ""))
        state = TrainState.start(prior, config.training)
        batch = CodeBatch(*inputs_of(prior))
        check_step(waits, task, state, batch)
        with torch.no_grad():
            # what a sampler asks for
            placed = prior.eval().level_logits(*batch.to(torch.device("cuda")))
        assert all(logits.is_cuda for logits in placed)


LAYERS = {
    "ema": {},
    "groups": {"linked": 2},
    "greedy": {"beam": 1},
}


@parametrize("name", LAYERS)
@parametrize("device", ["cuda", "meta"])
def test_a_training_step_of_the_layer(name, device):
    """After the start, and not at a restart, which draws on the CPU: one step in a hundred."""
    with fake_gpu() as waits, no_autocast():
        with torch.device(device):
            layer = TreeVQ(8, 4, 4, start_vectors=64, **LAYERS[name])
        layer.schedule.set_steps(1)
        features = torch.zeros(4, 16, 8, device=device, requires_grad=True)
        waits.places.clear()
        quantized, indices, loss = layer(features)
        assert quantized.device.type == device
        assert indices.shape == (4, 16, 4)
        assert loss.ndim == 0
        if device == "meta":
            (quantized.sum() + loss).backward()
        assert waits.places == []


def test_the_layer_decodes_indices_of_the_cpu():
    """Such as those that `encode` and `unique_indices` return."""
    with fake_gpu():
        with torch.device("cuda"):
            layer = TreeVQ(8, 4, 4)
        indices = torch.zeros(4, 16, 4, dtype=torch.long, device="cpu")
        assert layer.get_output_from_indices(indices).device.type == "cuda"
