"""Autoregressive priors over the codes of each level; how a configuration becomes one."""

from hrvqvae.config import Config, TransformerConfig
from hrvqvae.priors.base import Level, Prior, code_loss, total_bits
from hrvqvae.priors.pixelsnail import PixelSNAIL
from hrvqvae.priors.transformer import Transformer


def level_of(config: Config, index: int, classes: int) -> Level:
    """What the prior of a level (0 is the coarsest) must know, for images of the configured size."""
    model, size = config.model, config.data.size
    return Level(
        grid=model.latent_grids(size, size)[index],
        symbols=model.num_symbols[index],
        coarser=model.num_codewords[:index],
        classes=classes,
    )


def build_prior(config: Config, index: int, classes: int) -> Prior:
    """The untrained prior of a level, on the CPU, in float32."""
    network, level = config.prior.network, level_of(config, index, classes)
    if isinstance(network, TransformerConfig):
        return Transformer(network, level)
    return PixelSNAIL(network, level, index)


__all__ = ["Level", "PixelSNAIL", "Prior", "Transformer", "build_prior", "code_loss", "level_of", "total_bits"]
