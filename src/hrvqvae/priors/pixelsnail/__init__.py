"""PixelSNAIL: causal convolutions, gated residual blocks and causal attention (Chen et al. 2018)."""

from hrvqvae.config.registry import PriorNetwork
from hrvqvae.priors.pixelsnail.config import PixelSNAILConfig

PRIOR = PriorNetwork(
    name="pixelsnail",
    title="PixelSNAIL",
    config=PixelSNAILConfig,
    network="hrvqvae.priors.pixelsnail.network:PixelSNAIL",
    sampler="hrvqvae.priors.pixelsnail.sampler:sample_pixelsnail",
)
