"""Adversarial objectives: that of a VQGAN, and that of a decoder of samples.

A discriminator learns to tell images from decoded ones, and the decoder learns to deceive it. The
adversarial loss has an adaptive weight (Esser et al. 2021, equation 7).

Shapes: images (B, C, Y, X) in [0, 1]; features (B, C_r, Y_r, X_r) of each resolution r; classes
    (B,) int64, -1 without a class.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from hrvqvae import distributed
from hrvqvae.config import Config
from hrvqvae.config.model import VQGANConfig
from hrvqvae.models.objective import MODEL, Goal, Metrics, Objective
from hrvqvae.models.perceptual import (
    DISTANCES,
    EfficientNetDistance,
    PerceptualDistance,
    compare_features,
)

DISCRIMINATOR = "discriminator"
_WIDTH = 128  # hidden features of a FeatureHead
_CHANNELS = (40, 112, 320)  # of efficientnet-lite0's coarsest resolutions; each has a FeatureHead
_NORM_GROUPS = 32  # at most


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss, mean(max(0, 1 - real)) / 2 + mean(max(0, 1 + fake)) / 2."""
    return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2


def compute_adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor
) -> Tensor:
    """Return |grad reconstruction| / (|grad adversarial| + 1e-6) at the decoder's last weights
    (equation 7).

    The weight is at most 1e4, and has no gradient. The gradients are averaged over all processes.
    """
    gradients = [
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0]
        for loss in (reconstruction, adversarial)
    ]
    reconstruction_norm, adversarial_norm = (
        gradient.norm() for gradient in distributed.all_reduce_mean(gradients)
    )
    weight = reconstruction_norm / (adversarial_norm + 1e-6)
    return weight.clamp(max=1e4).detach()


def fix_gradient(loss: Tensor, at: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Return a scalar loss whose gradient with respect to `at` is computed now. It has no other
    gradient: the parameters of the loss's network get none.

    The adaptive weight and the update both differentiate the loss. With the fixed gradient, the
    loss's network runs backward only once. Its graph is freed unless it is retained.
    """
    (gradient,) = torch.autograd.grad(loss, at, retain_graph=retain_graph)
    # at - at.detach() is zero, and has the gradient one
    return loss.detach() + (gradient * (at - at.detach())).sum()


class PatchDiscriminator(nn.Sequential):
    """Images (B, C, Y, X) in [-1, 1] to scores (B, 1, h, w) of their patches, positive for "real".

    image -> conv 4x4, stride 2 -> leaky relu -> [conv 4x4, stride 2 -> norm -> leaky relu] x
    (layers - 1)
          -> conv 4x4 -> norm -> leaky relu -> conv 4x4 -> scores
    """

    def __init__(self, channels: int, units: int, layers: int) -> None:
        modules: list[nn.Module] = [
            nn.Conv2d(channels, units, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        width = units
        for layer in range(1, layers + 1):
            next_width = units * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            modules += [
                nn.Conv2d(width, next_width, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(math.gcd(_NORM_GROUPS, next_width), next_width),
                nn.LeakyReLU(0.2),
            ]
            width = next_width
        modules.append(nn.Conv2d(width, 1, 4, padding=1))
        super().__init__(*modules)


class VQGANObjective(Objective):
    """The objective of a VQGAN: squared error, perceptual distance and a patch discriminator (Esser
    et al. 2021, equations 5 to 7).

    Unlike the paper, this VQGAN has the encoder and decoder of the other systems, and a
    discriminator with group normalization. Raises InputError if the network of the perceptual
    distance is not on this machine.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.settings = cast(VQGANConfig, config.model)
        self.distance: PerceptualDistance | None = None
        if self.settings.perceptual != "none":
            self.distance = DISTANCES[self.settings.perceptual]()
        self.discriminator = PatchDiscriminator(
            config.data.channels,
            self.settings.discriminator_units,
            self.settings.discriminator_layers,
        )
        self.auxiliary = {DISCRIMINATOR: self.discriminator}

    def forward(self, model: nn.Module, images: Tensor, step: int) -> Goal:
        result = model(images)
        real = images.float() / 255
        fake = result.images
        losses = dict(result.losses)
        image_loss = losses["reconstruction"]
        if self.distance is not None:
            distance = self.distance(real, fake).float()
            perceptual = fix_gradient(self.settings.perceptual_weight * distance, fake)
            losses[f"perceptual ({self.distance.name})"] = perceptual
            image_loss = image_loss + perceptual
        if step < self.settings.adversarial_start:
            return Goal({MODEL: losses}, {}, result.codes)

        # the model makes the discriminator take its images for real
        self.discriminator.train()
        adversarial = fix_gradient(-self._score(fake).mean(), fake)
        last_layer = cast(nn.ConvTranspose2d, cast(nn.Sequential, model.decoder)[-1]).weight
        weight = compute_adaptive_weight(image_loss, adversarial, last_layer)
        losses["adversarial"] = self.settings.adversarial_weight * weight * adversarial

        # the discriminator tells them apart
        hinge = hinge_loss(self._score(real), self._score(fake.detach()))
        all_losses = {MODEL: losses, DISCRIMINATOR: {DISCRIMINATOR: hinge}}
        return Goal(all_losses, {"adaptive_weight": weight}, result.codes)

    def _score(self, images: Tensor) -> Tensor:
        return self.discriminator(images * 2 - 1).float()


class FeatureHead(nn.Module):
    """Features (B, C, Y, X) of images, and their classes, to scores (B,), positive for "real"
    (Miyato and Koyama 2018), and to logits (B, number of classes) of the classes, from the features
    alone.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, _WIDTH, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.LeakyReLU(0.2),
        )
        # no bias: its gradient is 0 while all scores are within the margins of the hinge loss
        self.score = nn.Linear(_WIDTH, 1, bias=False)
        self.class_direction = nn.Embedding(classes + 1, _WIDTH)
        nn.init.zeros_(self.class_direction.weight)
        # if there are no classes, a logit that nothing uses
        self.classify = nn.Linear(_WIDTH, max(1, classes))

    def forward(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(features).mean((2, 3))
        by_class = (hidden * self.class_direction(classes + 1)).sum(1) / math.sqrt(_WIDTH)
        return self.score(hidden)[:, 0] + by_class, self.classify(hidden)


class FeatureDiscriminator(nn.ModuleList):
    """A `FeatureHead` for each of the coarsest resolutions of efficientnet-lite0 (Sauer et al.
    2021).
    """

    def forward(self, features: Sequence[Tensor], classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (R, B) of R resolutions, and the mean cross-entropy of the classes, a
        scalar. The cross-entropy of an image without a class is 0.
        """
        coarse = features[-len(self) :]
        outputs = [head(part, classes) for head, part in zip(self, coarse, strict=True)]
        scores, logits = (torch.cat(parts).float() for parts in zip(*outputs, strict=True))
        targets = classes.repeat(len(self))
        entropy = cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
        return scores.view(len(self), -1), entropy / len(targets)


def change_images(images: Tensor, draws: Tensor) -> Tensor:
    """Change brightness, saturation and contrast of images (B, C, Y, X), shift them by up to an
    eighth of a side, and cover a square of 3/8 of a side with grey (Zhao et al. 2020, DiffAugment).

    draws (B, 7) in [0, 1) decide the changes. The result is differentiable in the images.
    """
    count, channels, height, width = images.shape
    brightness, saturation, contrast, down, right, top, left = draws.T[..., None, None, None]

    # colours
    images = images + 0.4 * (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (0.5 + saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (0.7 + 0.6 * contrast)

    # shifts by whole pixels; the border is mirrored
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    from_rows = _mirror(rows + (height / 4 * (down - 0.5)).round().long(), height)
    from_columns = _mirror(columns + (width / 4 * (right - 0.5)).round().long(), width)
    numbers = torch.arange(count, device=images.device)[:, None, None, None]
    places = torch.arange(channels, device=images.device)[:, None, None]
    images = images[numbers, places, from_rows, from_columns]

    # the square may lie in part beyond the border
    below = rows / height - (1.25 * top - 0.25)
    beside = columns / width - (1.25 * left - 0.25)
    covered = (below >= 0) & (below < 0.375) & (beside >= 0) & (beside < 0.375)
    return images.masked_fill(covered, 0.5)


def _mirror(indices: Tensor, size: int) -> Tensor:
    """Return indices of which those outside of 0..size - 1 are mirrored at the border."""
    last = size - 1
    return last - (last - indices.abs()).abs()


class SampleObjective(nn.Module):
    """The objective of a decoder of samples: squared error and perceptual distance of
    reconstructions, and a discriminator of reconstructions and samples.

    The discriminator also learns to recognize the classes of images, and the decoder makes images
    that it recognizes (Odena et al. 2017). Raises InputError if efficientnet-lite0 is not on
    this machine.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.settings = config.generation
        self.distance = EfficientNetDistance()
        self.discriminator = FeatureDiscriminator(
            FeatureHead(channels, self.settings.classes) for channels in _CHANNELS
        )
        self.auxiliary = {DISCRIMINATOR: self.discriminator}

    def judge(
        self, images: Tensor, decoded: Tensor, classes: Tensor, last_layer: Tensor, step: int
    ) -> tuple[dict[str, dict[str, Tensor]], Metrics]:
        """Return the losses of the decoder and of the discriminator, by the network's name, and
        further values to log.

        Args:
            images: B images.
            decoded: The reconstructions of the images, then samples.
            classes: Of the decoded images.
            last_layer: The last weights of the decoder.
            step: Number of earlier steps; the discriminator joins at `adversarial_start`.
        """
        count = len(images)
        if self.settings.augment:
            # an image and its reconstruction are changed alike
            draws = torch.rand(len(decoded), 7, device=images.device)
            images = change_images(images, draws[:count])
            decoded = change_images(decoded, draws)
        with torch.no_grad():
            features = self.distance.features(images)
        decoded_features = self.distance.features(decoded)

        # the reconstructions are like the images
        error = 4 * (decoded[:count] - images).square().mean()  # of pixels in [-1, 1]
        distance = compare_features(features, [part[:count] for part in decoded_features])
        perceptual = fix_gradient(
            self.settings.perceptual_weight * distance.float(), decoded, retain_graph=True
        )
        losses = {"reconstruction": error, f"perceptual ({self.distance.name})": perceptual}
        if step < self.settings.adversarial_start:
            return {MODEL: losses}, {}

        # the discriminator takes reconstructions and samples for real, and recognizes them
        scores, entropy = self.discriminator(decoded_features, classes)
        loss = self.settings.class_weight * entropy - scores[:, :count].mean()
        if len(decoded) > count:
            loss = loss - self.settings.sample_weight * scores[:, count:].mean()
        adversarial = fix_gradient(loss, decoded)
        weight = compute_adaptive_weight(error + perceptual, adversarial, last_layer)
        losses["adversarial"] = self.settings.adversarial_weight * weight * adversarial

        # the discriminator tells them from the images, and recognizes the images
        real, real_entropy = self.discriminator(features, classes[:count])
        fake, _ = self.discriminator([part.detach() for part in decoded_features], classes)
        own_losses = {DISCRIMINATOR: hinge_loss(real, fake), "classes": real_entropy}
        return {MODEL: losses, DISCRIMINATOR: own_losses}, {"adaptive_weight": weight}
