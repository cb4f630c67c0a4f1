"""The systems, and how a configuration becomes one."""

from hrvqvae.config import Config, HRVQVAEConfig, VQGANConfig, VQVAEConfig
from hrvqvae.models.base import Autoencoder, Reconstructed
from hrvqvae.models.hrvqvae import HRVQVAE
from hrvqvae.models.vqgan import VQGAN
from hrvqvae.models.vqvae import VQVAE
from hrvqvae.models.vqvae2 import VQVAE2


def build(config: Config) -> Autoencoder:
    """The untrained model that a configuration describes, on the CPU, in float32."""
    model, channels = config.model, config.data.channels
    if isinstance(model, HRVQVAEConfig):
        return HRVQVAE(model, channels)
    if isinstance(model, VQVAEConfig):
        return VQVAE(model, channels)
    if isinstance(model, VQGANConfig):
        return VQGAN(model, channels)
    return VQVAE2(model, channels)


__all__ = ["HRVQVAE", "VQGAN", "VQVAE", "VQVAE2", "Autoencoder", "Reconstructed", "build"]
