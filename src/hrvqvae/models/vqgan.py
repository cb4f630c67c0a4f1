"""The objective of a VQGAN (Esser et al. 2021): squared error, perceptual distance, and a patch discriminator.

Unlike in the paper, encoder and decoder are those of the other systems, so that only the objective differs.

Shapes: images (B, C, Y, X) in [-1, 1]; scores of the discriminator (B, 1, h, w), a score per patch.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from hrvqvae import distributed
from hrvqvae.config import Config
from hrvqvae.config.model import VQGANConfig
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.objective import MODEL, Learner, Metrics, Objective, Place
from hrvqvae.models.perceptual import PerceptualDistance, perceptual_distance
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.quantize import Codes

DISCRIMINATOR = "discriminator"


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalization by the statistics of all processes; torch's SyncBatchNorm does not run on a CPU."""

    def forward(self, features: Tensor) -> Tensor:
        if not (self.training and distributed.is_distributed()):
            return super().forward(features)
        buffers = (self.running_mean, self.running_var, self.num_batches_tracked)
        running_mean, running_var, tracked = (buffer for buffer in buffers if buffer is not None)
        momentum = self.momentum or 0.0
        values = features.float()
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        count = distributed.all_reduce_with_gradient(values.new_tensor([values.numel() / self.num_features]))
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

    image -> [conv 4x4, stride 2, norm, leaky relu] x layers -> two convs 4x4 -> scores
    """

    def __init__(self, channels: int, units: int, layers: int) -> None:
        parts: list[nn.Module] = [nn.Conv2d(channels, units, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = units
        for layer in range(1, layers + 1):
            wider, stride = units * min(2**layer, 8), 2 if layer < layers else 1
            parts += [nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False), BatchNorm2d(wider)]
            parts += [nn.LeakyReLU(0.2)]
            width = wider
        parts.append(nn.Conv2d(width, 1, 4, padding=1))
        super().__init__(*parts)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss, mean(max(0, 1 - real)) / 2 + mean(max(0, 1 + fake)) / 2."""
    return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return |grad reconstruction| / (|grad adversarial| + 1e-6) at the decoder's last weights (equation 7).

    The weight is at most 1e4, without gradient. Gradients are those of the batch of all processes.
    """
    gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
    of_reconstruction, of_adversarial = (gradient.norm() for gradient in distributed.all_reduce_mean(gradients))
    weight: Tensor = of_reconstruction / (of_adversarial + 1e-6)
    return weight.clamp(max=1e4).detach()


def fix_gradient(loss: Tensor, at: Tensor) -> Tensor:
    """Return a scalar loss that keeps only its gradient with respect to `at`, which is computed now.

    The adaptive weight and the update both differentiate the loss; so its network runs backward only once.
    """
    (gradient,) = torch.autograd.grad(loss, at)
    return loss.detach() + (gradient * (at - at.detach())).sum()


class AdversarialObjective(Objective):
    """Updates a VQGAN, and after `adversarial_start` steps its discriminator (Esser et al. 2021, equations 5 to 7).

    Raises InputError if the network of the perceptual loss is not on this machine.
    """

    def __init__(self, model: Autoencoder, config: Config, place: Place) -> None:
        self.model, self.settings = cast(SingleGridAutoencoder, model), cast(VQGANConfig, config.model)
        units, layers = self.settings.discriminator_units, self.settings.discriminator_layers
        self.distance: PerceptualDistance | None = None
        if self.settings.perceptual != "none":
            self.distance = perceptual_distance(self.settings.perceptual)
            place(self.distance)
        self.discriminator = PatchDiscriminator(config.data.channels, units, layers)
        place(self.discriminator)
        self.auxiliary = {DISCRIMINATOR: self.discriminator}

    def __call__(self, images: Tensor, learner: Learner) -> tuple[Metrics, Codes]:
        self.discriminator.train()
        real = images.float() / 255
        with learner.autocast():
            result = self.model(images)
        fake, losses = result.images, dict(result.losses)
        reconstruction = losses["reconstruction"]
        if self.distance is not None:
            with learner.autocast():
                distance = self.distance(real, fake).float()
            perceptual = fix_gradient(self.settings.perceptual_weight * distance, fake)
            losses[f"perceptual ({self.distance.name})"] = perceptual
            reconstruction = reconstruction + perceptual
        if learner.step < self.settings.adversarial_start:
            metrics = learner.take_gradient(losses)
            learner.update(MODEL)
            return metrics, result.codes
        with learner.autocast():
            adversarial = -self.discriminator(fake * 2 - 1).mean().float()
            hinge = hinge_loss(self.discriminator(real * 2 - 1), self.discriminator(fake.detach() * 2 - 1)).float()
        adversarial = fix_gradient(adversarial, fake)
        weight = adaptive_weight(reconstruction, adversarial, cast(nn.ConvTranspose2d, self.model.decoder[-1]).weight)
        losses["adversarial"] = self.settings.adversarial_weight * weight * adversarial
        metrics = learner.take_gradient(losses)
        discriminator_metrics = learner.take_gradient({DISCRIMINATOR: hinge}, of=DISCRIMINATOR)
        learner.update(MODEL, DISCRIMINATOR)  # on a CPU both gradients are finite by now
        return {**metrics, "adaptive_weight": weight, DISCRIMINATOR: discriminator_metrics["loss"]}, result.codes
