"""Training a decoder on all prefixes of the levels at once."""

import numpy as np
import pytest
import torch

from hrvqvae.models.single_grid import relative_error
from tests.models.small import config_of, model_of


def test_the_gradient_is_that_of_the_mean_logarithm_of_the_errors() -> None:
    errors = torch.tensor([4.0, 1.0, 8.0, 3.0], requires_grad=True)
    prefix = torch.tensor([0, 1, 0, 1])
    loss = relative_error(errors, prefix, 2)
    assert loss == 2.0  # the mean error of the longest prefix
    loss.backward()
    assert errors.grad is not None
    assert errors.grad.tolist() == pytest.approx([2 / 12 / 2, 2 / 4 / 2, 2 / 12 / 2, 2 / 4 / 2])


def test_images_of_a_training_batch_are_decoded_from_each_prefix_in_turn() -> None:
    model = model_of(config_of("hrvqvae", train_prefixes=True)).train()
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), np.uint8))
    result = model(images)
    model.eval()
    prefixes = [model.decode(result.codes, levels=levels) for levels in model.prefixes]
    for index, image in enumerate(result.images):
        expected = prefixes[index % len(prefixes)][index]
        assert torch.allclose(image.clamp(0, 1), expected, atol=1e-5)
    assert torch.allclose(model(images).images.clamp(0, 1), prefixes[-1], atol=1e-5)
