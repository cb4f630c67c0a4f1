"""A transformer over the codes in raster order (Esser et al. 2021, section 3.2)."""

from hrvqvae.config.registry import PriorNetwork
from hrvqvae.priors.transformer.config import TransformerConfig

PRIOR = PriorNetwork(
    name="transformer",
    title="transformer",
    config=TransformerConfig,
    network="hrvqvae.priors.transformer.network:Transformer",
    sampler="hrvqvae.priors.transformer.sampler:sample_transformer",
)
