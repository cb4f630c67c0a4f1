"""The objective of a VQGAN (Esser et al. 2021): squared error, perceptual distance, and a patch
discriminator.

Unlike the paper, this VQGAN has the encoder and decoder of the other systems, so that only the
objective differs.

Shapes: images (B, C, Y, X), in [-1, 1] for the discriminator; its scores (B, 1, h, w), a score per
    patch.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from hrvqvae import distributed
from hrvqvae.config import Config
from hrvqvae.config.model import VQGANConfig
from hrvqvae.models.objective import MODEL, Goal, Objective
from hrvqvae.models.perceptual import PerceptualDistance, perceptual_distance

DISCRIMINATOR = "discriminator"


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization with the statistics of all processes. torch's SyncBatchNorm does not run
    on a CPU.
    """

    def forward(self, features: Tensor) -> Tensor:
        if not (self.training and distributed.is_distributed()):
            return super().forward(features)
        buffers = (self.running_mean, self.running_var, self.num_batches_tracked)
        running_mean, running_var, tracked = (buffer for buffer in buffers if buffer is not None)
        momentum = self.momentum or 0.0
        values = features.float()
        axes = (0, 2, 3)
        shape = (1, -1, 1, 1)
        count = distributed.all_reduce_with_gradient(
            values.new_tensor([values.numel() / self.num_features])
        )
        mean = distributed.all_reduce_with_gradient(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = distributed.all_reduce_with_gradient(centred.square().sum(axes)) / count
        with torch.no_grad():
            tracked += 1
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * count / (count - 1), momentum)
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (scaled * self.weight.view(shape) + self.bias.view(shape)).to(features.dtype)


class PatchDiscriminator(nn.Sequential):
    """Scores (B, 1, h, w) of the patches of images; a positive score means "real".

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
                SyncedBatchNorm2d(next_width),
                nn.LeakyReLU(0.2),
            ]
            width = next_width
        modules.append(nn.Conv2d(width, 1, 4, padding=1))
        super().__init__(*modules)


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
    """Compute the gradient of a scalar loss with respect to `at`, and return the loss with this
    fixed gradient, and with no other: none of the parameters of the loss's network.

    The adaptive weight and the update both differentiate the loss. With the fixed gradient, the
    loss's network runs backward only once. Its graph is freed unless it is retained.
    """
    (gradient,) = torch.autograd.grad(loss, at, retain_graph=retain_graph)
    # at - at.detach() is zero, and has the gradient one
    return loss.detach() + (gradient * (at - at.detach())).sum()


class AdversarialObjective(Objective):
    """Squared error, perceptual distance and a patch discriminator (Esser et al. 2021, equations 5
    to 7). Raises InputError if the network of the perceptual distance is not on this machine.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.settings = cast(VQGANConfig, config.model)
        self.distance: PerceptualDistance | None = None
        if self.settings.perceptual != "none":
            self.distance = perceptual_distance(self.settings.perceptual)
        self.discriminator = PatchDiscriminator(
            config.data.channels,
            self.settings.discriminator_units,
            self.settings.discriminator_layers,
        )

    @property
    def auxiliary(self) -> dict[str, nn.Module]:
        return {DISCRIMINATOR: self.discriminator}

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
