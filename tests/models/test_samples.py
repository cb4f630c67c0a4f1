"""The objective of the decoder of samples."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hrvqvae.config import presets
from hrvqvae.models.adversarial import FeatureHead, SampleObjective, change_images
from hrvqvae.models.perceptual import EfficientNetDistance
from tests.conftest import generator, same

CLASSES = torch.tensor([0, -1, 1, 1])  # of two images and two samples


@pytest.fixture
def objective():
    torch.manual_seed(0)
    base = presets.get("treevq-deep/cifar10").config
    return SampleObjective(base.replace(**{"generation.classes": 2}))


@pytest.fixture
def images():
    return torch.rand(2, 3, 16, 16, generator=generator(1))


@pytest.fixture
def decoder():
    torch.manual_seed(1)
    return nn.Conv2d(3, 3, 3, padding=1)


INPUTS = torch.rand(4, 3, 16, 16, generator=generator(2))


def gradient_of(losses, weight):
    return torch.autograd.grad(sum(losses.values()), weight, retain_graph=True)[0]


def test_the_gradient_is_that_of_the_losses_as_written(objective, images, decoder):
    decoded = decoder(INPUTS)
    losses, metrics = objective.judge(images, decoded, CLASSES, decoder.weight, 100)
    settings = objective.settings

    # the same without shared features and without fixed gradients
    network = EfficientNetDistance()
    distance = network(images, decoded[:2])
    error = ((2 * decoded[:2] - 1) - (2 * images - 1)).square().mean()
    heads = zip(objective.discriminator, network.features(decoded)[-3:], strict=True)
    outputs = [head(features, CLASSES) for head, features in heads]
    scores = torch.stack([scores for scores, _ in outputs])
    adversarial = -scores[:, :2].mean() - settings.sample_weight * scores[:, 2:].mean()
    labelled = [0, 2, 3]
    for _, logits in outputs:
        shares = logits.softmax(1)[labelled, CLASSES[labelled]]
        adversarial = adversarial - settings.class_weight * shares.log().sum() / (3 * 4)
    image_loss = error + settings.perceptual_weight * distance
    norms = [gradient_of({"": loss}, decoder.weight).norm() for loss in (image_loss, adversarial)]
    assert_close(metrics["adaptive_weight"], norms[0] / (norms[1] + 1e-6))
    weight = settings.adversarial_weight * metrics["adaptive_weight"]
    expected = {"image": image_loss, "adversarial": weight * adversarial}
    assert_close(sum(losses["model"].values()), sum(expected.values()))
    assert_close(
        gradient_of(losses["model"], decoder.weight),
        gradient_of(expected, decoder.weight),
        rtol=1e-3,
        atol=1e-5,
    )


def test_each_network_follows_its_own_losses(objective, images, decoder):
    losses, _ = objective.judge(images, decoder(INPUTS), CLASSES, decoder.weight, 100)
    parameters = list(objective.discriminator.parameters())
    sum(losses["model"].values()).backward()
    assert all(parameter.grad is None for parameter in parameters)
    decoder.zero_grad(set_to_none=True)
    sum(losses["discriminator"].values()).backward()
    assert decoder.weight.grad is None
    assert all(parameter.grad.any() for parameter in parameters)
    assert not any(parameter.requires_grad for parameter in objective.distance.parameters())


def test_a_score_is_a_mean_over_positions_and_a_projection_on_the_class():
    torch.manual_seed(0)
    head = FeatureHead(5, classes=2)
    features = torch.rand(3, 5, 4, 4)
    classes = torch.tensor([-1, 0, 1])
    plain = head.score(head.body(features).mean((2, 3)))[:, 0]
    assert same(head(features, classes)[0], plain)
    nn.init.normal_(head.class_direction.weight)
    directions = head.class_direction.weight
    hidden = head.body(features).mean((2, 3))
    projected = torch.stack([hidden[index] @ directions[index] for index in range(3)])
    assert_close(head(features, classes)[0], plain + projected / 128**0.5)


def test_changed_images_are_shifted_mirrored_at_the_border_and_covered():
    image = torch.rand(1, 3, 16, 16, generator=generator(3))
    corner = [0.2, 0.2]  # of the square: at the upper left
    same_place = change_images(image, torch.tensor([[0.5] * 5 + corner]))
    expected = image.clone()
    expected[:, :, :6, :6] = 0.5
    assert_close(same_place, expected)

    # down by an eighth of the side, 2 pixels, and to the left by one
    draws = torch.tensor([[0.5] * 3 + [0.0, 0.75] + corner])
    expected = image[:, :, [2, 1, *range(14)]][:, :, :, [*range(1, 16), 14]]
    expected[:, :, :6, :6] = 0.5
    assert_close(change_images(image, draws), expected)


def test_changed_images_have_other_colours():
    image = torch.rand(1, 3, 8, 8, generator=generator(4))
    still = [0.5, 0.5, 1.0, 1.0]  # no shift, and a square beyond the border
    brighter = change_images(image, torch.tensor([[0.75, 0.5, 0.5, *still]]))
    seen = (..., slice(0, 7), slice(0, 7))
    assert_close(brighter[seen], (image + 0.1)[seen])
    colourless = change_images(image, torch.tensor([[0.5, -0.5, 0.5, *still]]))
    assert_close(colourless[seen], image.mean(1, keepdim=True).expand_as(image)[seen])
    flat = change_images(image, torch.tensor([[0.5, 0.5, -7 / 6, *still]]))
    assert_close(flat[seen], image.mean().expand_as(image)[seen])


def test_an_image_and_its_reconstruction_are_changed_alike(images):
    base = presets.get("treevq-deep/photos64").config
    objective = SampleObjective(base.replace(**{"generation.classes": 2}))
    assert objective.settings.augment
    decoded = torch.cat([images, images.flip(3)]).requires_grad_()
    losses, _ = objective.judge(images, decoded, CLASSES, decoded, 0)
    assert float(losses["model"]["reconstruction"].detach()) == 0
