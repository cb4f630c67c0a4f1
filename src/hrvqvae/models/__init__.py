"""The systems, and how a configuration becomes one."""

from hrvqvae.config import Config
from hrvqvae.models.base import Autoencoder, Reconstructed
from hrvqvae.models.hrvqvae import HRVQVAE


def build(config: Config) -> Autoencoder:
    """The untrained model that a configuration describes, on the CPU, in float32."""
    return HRVQVAE(config.model, config.data.channels)


__all__ = ["HRVQVAE", "Autoencoder", "Reconstructed", "build"]
