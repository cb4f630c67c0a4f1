"""The objective of a decoder of samples: squared error and perceptual distance of reconstructions,
and a discriminator of reconstructions and samples.

The discriminator sees features of efficientnet-lite0 (Sauer et al. 2021), and the classes of the
images (Miyato and Koyama 2018). It also learns to recognize the classes of images, and the decoder
makes images that it recognizes (Odena et al. 2017).

Shapes: images (B, C, Y, X) in [0, 1]; features (B, C_r, Y_r, X_r) of each resolution r; classes
    (B,) int64, -1 without a class.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hrvqvae.config import Config
from hrvqvae.models.objective import MODEL, Metrics
from hrvqvae.models.perceptual import EfficientNetDistance, compare_features
from hrvqvae.models.vqgan import (
    DISCRIMINATOR,
    compute_adaptive_weight,
    fix_gradient,
    hinge_loss,
)

_WIDTH = 128
_RESOLUTIONS = 3  # the coarsest


class FeatureHead(nn.Module):
    """Features (B, C, Y, X) of images, and their classes, to scores (B,), positive for "real", and
    to logits (B, number of classes) of the classes, from the features alone.
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
    """A `FeatureHead` for each of the coarsest resolutions."""

    def forward(self, features: Sequence[Tensor], classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (R, B) of R resolutions, and the mean cross-entropy of the classes, a
        scalar. That of an image without a class is 0.
        """
        coarse = features[-len(self) :]
        outputs = [head(part, classes) for head, part in zip(self, coarse, strict=True)]
        scores, logits = (torch.cat(parts).float() for parts in zip(*outputs, strict=True))
        targets = classes.repeat(len(self))
        entropy = cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
        return scores.view(len(self), -1), entropy / len(targets)


class SampleObjective(nn.Module):
    """The losses of a decoder of samples and of its discriminator.

    Raises InputError if efficientnet-lite0 is not on this machine.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.settings = config.generation
        self.distance = EfficientNetDistance()
        sizes = [part.shape[1] for part in self.distance.features(torch.zeros(1, 3, 64, 64))]
        self.discriminator = FeatureDiscriminator(
            FeatureHead(channels, self.settings.classes) for channels in sizes[-_RESOLUTIONS:]
        )

    @property
    def auxiliary(self) -> dict[str, nn.Module]:
        return {DISCRIMINATOR: self.discriminator}

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
