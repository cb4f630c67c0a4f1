"""One prior for all levels: a trunk over positions, and a head over the levels at each position (Lee et al. 2022)."""

from hrvqvae.config.registry import PriorNetwork
from hrvqvae.priors.depth.config import DepthConfig

PRIOR = PriorNetwork(
    name="depth",
    title="PixelSNAIL with a head over the levels",
    config=DepthConfig,
    network="hrvqvae.priors.depth.network:DepthPrior",
    sampler="hrvqvae.priors.depth.sampler:sample_depth",
)
