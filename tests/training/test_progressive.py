"""Training a decoder of prefixes."""

import pytest
import torch

from hrvqvae import load
from hrvqvae.checkpoints.folder import RunFolder, open_run
from hrvqvae.data.batches import Batch
from hrvqvae.training.decoder import PrefixTask, compute_relative_errors
from hrvqvae.training.state import TrainState
from tests.conftest import (
    approx,
    drawn_digits,
    parametrize,
    same,
)
from tests.trained_run import tiny_systems
from tests.training.tasks import Case, untrained_run


@pytest.fixture
def case(run, tiny):
    return Case("progressive", run, tiny)


@pytest.fixture
def images():
    pixels, _ = drawn_digits(16, seed=3)
    return torch.from_numpy(pixels)[:, None] / 255


def error(model, images, levels):
    decoded = model.decode(model.encode(images), levels=levels, size=(12, 12))
    return float((decoded - images).square().mean())


def test_it_betters_prefixes_and_leaves_everything_else_to_the_bit(case, images):
    before = load(case.path)
    file = RunFolder(case.path).model
    content = file.read_bytes()
    case.train(max_steps=100, learning_rate=0.01, evaluate_every=50)
    after = load(case.path)
    assert file.read_bytes() == content
    codes = before.encode(images)
    files = before.compress(images[:1])
    assert after.compress(images[:1]) == files
    for levels in (None, 2):
        assert same(before.decode(codes, levels), after.decode(codes, levels))
    assert before.autoencoder.state_dict().keys() == after.autoencoder.state_dict().keys()
    assert error(after, images, 1) < 0.9 * error(before, images, 1)
    first, last = (record["level_mse"] for record in case.records("evaluation"))
    assert first[-1] == last[-1]
    # the decoder goes where its model goes
    decoder = after.autoencoder.double().progressive_decoder
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float64}


@parametrize("system", ["hrvqvae", "rqvae"])
def test_each_image_is_cut_to_a_prefix_in_turn(system, mnist_root, tmp_path, images):
    case = untrained_run("progressive", tiny_systems(mnist_root)[system], tmp_path)
    task = PrefixTask(case.path, case.config())
    state = TrainState.start(task.build(), task.training)
    pixels = (images * 255).round().byte()
    model = open_run(case.path).load()[0]
    codes = model.encode(pixels)

    def step(count):
        return task.step(state, Batch(pixels[:count], torch.zeros(count).long()))

    result = step(15)
    # nothing is learned yet; decoded images are clamped, those that are learned from are not
    for levels in (1, 2):
        with torch.no_grad():
            errors = (model.decode(codes, levels, (12, 12)) - images).square()
        expected = 4 * float(errors[levels - 1 : 15 : 2].mean())
        assert result[f"reconstruction_{levels}"] == approx(expected, rel=0.05)
    assert result["gradient_norm"] > 0

    # a batch smaller than the number of prefixes has some of them
    state.step = 1
    result = step(1)
    assert result["reconstruction_2"] > 0
    assert result["reconstruction_1"] == 0


def test_the_gradient_is_that_of_the_mean_logarithm_of_the_errors():
    errors = torch.tensor([4.0, 1.0, 8.0, 3.0], requires_grad=True)
    relative, means = compute_relative_errors(errors, torch.tensor([0, 1, 0, 1]), 2)
    assert (relative.tolist(), means.tolist()) == ([1, 1], [6, 2])
    relative.mean().backward()
    assert errors.grad.tolist() == approx([1 / 24, 1 / 8, 1 / 24, 1 / 8])
