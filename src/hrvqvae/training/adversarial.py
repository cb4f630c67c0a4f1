"""How a VQGAN learns: squared error, perceptual distance, and a patch discriminator with an adaptive weight."""

from __future__ import annotations

from torch import Tensor, nn

from hrvqvae.config import Config, VQGANConfig
from hrvqvae.losses import PerceptualDistance, perceptual_distance
from hrvqvae.losses.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    gradient_taken,
    hinge_loss,
)
from hrvqvae.models import VQGAN
from hrvqvae.quantize import Codes
from hrvqvae.training.device import Compute
from hrvqvae.training.loop import Metrics, take_gradient, update
from hrvqvae.training.state import TrainState

DISCRIMINATOR = "discriminator"


def discriminator_of(config: VQGANConfig, channels: int) -> PatchDiscriminator:
    """The untrained discriminator of a configuration."""
    return PatchDiscriminator(channels, config.discriminator_units, config.discriminator_layers)


class AdversarialObjective:
    """One update of a VQGAN, then one of its discriminator, on the same batch (Esser et al. 2021, equations 5 to 7).

    The discriminator begins after `adversarial_start` steps; before, nothing of it moves.
    """

    def __init__(self, model: VQGAN, config: Config, compute: Compute) -> None:
        assert isinstance(config.model, VQGANConfig)
        self.model, self.settings, self.compute = model, config.model, compute
        self.distance: PerceptualDistance | None = None
        if self.settings.perceptual != "none":
            self.distance = compute.place_model(perceptual_distance(self.settings.perceptual))

    def __call__(self, state: TrainState, images: Tensor) -> tuple[Metrics, Codes]:
        partner, started = state.partners[DISCRIMINATOR], state.step >= self.settings.adversarial_start
        partner.module.train()
        real = images.float() / 255
        with self.compute.autocast():
            result = self.model(images)
            felt = None if self.distance is None else self.distance(real, result.images).float()
        fake, losses = result.images, dict(result.losses)
        seen = losses["reconstruction"]
        if self.distance is not None and felt is not None:
            felt = gradient_taken(self.settings.perceptual_weight * felt, fake)
            losses[f"perceptual ({self.distance.name})"] = felt
            seen = seen + felt
        if not started:
            return update(self.model, state.optimizer, losses), result.codes
        with self.compute.autocast():
            adversarial = generator_loss(partner.module(fake * 2 - 1)).float()
            judged = hinge_loss(partner.module(real * 2 - 1), partner.module(fake.detach() * 2 - 1)).float()
        adversarial = gradient_taken(adversarial, fake)
        weight = adaptive_weight(seen, adversarial, self._last_layer())
        losses["adversarial"] = self.settings.adversarial_weight * weight * adversarial
        metrics = take_gradient(self.model, state.optimizer, losses)
        judge = take_gradient(partner.module, partner.optimizer, {DISCRIMINATOR: judged})
        for optimizer in (state.optimizer, partner.optimizer):  # both gradients are finite by now
            optimizer.step()
        return {**metrics, "adaptive_weight": float(weight), DISCRIMINATOR: judge["loss"]}, result.codes

    def _last_layer(self) -> Tensor:
        """Weights of the decoder's last convolution."""
        last = self.model.decoder[-1]
        assert isinstance(last, nn.ConvTranspose2d)
        return last.weight


def partners_of(config: Config, compute: Compute) -> dict[str, nn.Module]:
    """What is trained beside the model, by name: a VQGAN's discriminator."""
    if isinstance(config.model, VQGANConfig):
        discriminator = discriminator_of(config.model, config.data.channels)
        return {DISCRIMINATOR: compute.place_model(discriminator)}
    return {}


__all__ = ["AdversarialObjective", "discriminator_of", "partners_of"]
