"""How a VQGAN learns: squared error, perceptual distance, and a patch discriminator with an adaptive weight."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from hrvqvae.config import Config
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.objective import MODEL, Learner, Metrics, Objective, Place
from hrvqvae.models.perceptual import PerceptualDistance, perceptual_distance
from hrvqvae.models.vqgan.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    hinge_loss,
    with_known_gradient,
)
from hrvqvae.models.vqgan.config import VQGANConfig
from hrvqvae.models.vqgan.model import VQGAN
from hrvqvae.quantize import Codes

DISCRIMINATOR = "discriminator"


def discriminator_of(config: VQGANConfig, channels: int) -> PatchDiscriminator:
    """The untrained discriminator of a configuration."""
    return PatchDiscriminator(channels, config.discriminator_units, config.discriminator_layers)


class AdversarialObjective(Objective):
    """One update of a VQGAN, then one of its discriminator, on the same batch (Esser et al. 2021, equations 5 to 7).

    The discriminator begins after `adversarial_start` steps; before, nothing of it moves.

    Raises:
        InputError: the network of the perceptual loss is not on this machine.
    """

    def __init__(self, model: Autoencoder, config: Config, place: Place) -> None:
        self.model, self.settings = cast(VQGAN, model), cast(VQGANConfig, config.model)
        self.distance: PerceptualDistance | None = None
        if self.settings.perceptual != "none":
            self.distance = place(perceptual_distance(self.settings.perceptual))
        self.discriminator = place(discriminator_of(self.settings, config.data.channels))
        self.auxiliary = {DISCRIMINATOR: self.discriminator}

    def __call__(self, images: Tensor, learner: Learner) -> tuple[Metrics, Codes]:
        self.discriminator.train()
        real = images.float() / 255
        with learner.autocast():
            result = self.model(images)
            distance = None if self.distance is None else self.distance(real, result.images).float()
        fake, losses = result.images, dict(result.losses)
        seen = losses["reconstruction"]
        if self.distance is not None and distance is not None:
            perceptual = with_known_gradient(self.settings.perceptual_weight * distance, fake)
            losses[f"perceptual ({self.distance.name})"] = perceptual
            seen = seen + perceptual
        if learner.step < self.settings.adversarial_start:
            metrics = learner.take_gradient(losses)
            learner.update(MODEL)
            return metrics, result.codes
        with learner.autocast():
            adversarial = generator_loss(self.discriminator(fake * 2 - 1)).float()
            judged = hinge_loss(self.discriminator(real * 2 - 1), self.discriminator(fake.detach() * 2 - 1)).float()
        adversarial = with_known_gradient(adversarial, fake)
        weight = adaptive_weight(seen, adversarial, self._last_layer())
        losses["adversarial"] = self.settings.adversarial_weight * weight * adversarial
        metrics = learner.take_gradient(losses)
        judge = learner.take_gradient({DISCRIMINATOR: judged}, of=DISCRIMINATOR)
        learner.update(MODEL, DISCRIMINATOR)  # both gradients are finite by now
        return {**metrics, "adaptive_weight": float(weight), DISCRIMINATOR: judge["loss"]}, result.codes

    def _last_layer(self) -> Tensor:
        """Weights of the decoder's last convolution."""
        last = self.model.decoder[-1]
        assert isinstance(last, nn.ConvTranspose2d)
        return last.weight
