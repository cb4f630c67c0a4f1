"""From a configuration to the priors of a run."""

from __future__ import annotations

from typing import cast

from hrvqvae.config import Config
from hrvqvae.config.entries import PRIORS
from hrvqvae.config.registry import imported
from hrvqvae.priors.base import Level, Prior


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
    network = config.prior.network
    build = imported(PRIORS.get(network.kind).network)
    return cast(Prior, build(network, level_of(config, index, classes), index))
