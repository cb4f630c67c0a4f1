"""From a configuration to the priors of a run."""

from __future__ import annotations

from typing import cast

from hrvqvae.config import Config, Levels
from hrvqvae.config.registry import PRIORS, imported
from hrvqvae.priors.base import Level, Prior


def level_of(config: Config, index: int, classes: int) -> Level:
    """What a prior must know of a level (0 is the coarsest), for images of the configured size."""
    model, size = config.model, config.data.size
    return Level(
        grid=model.latent_grids(size, size)[index],
        symbols=model.num_symbols[index],
        coarser=model.num_codewords[:index],
        codewords=model.num_codewords[index],
        classes=classes,
        unconditional=classes > 0 and config.prior.class_dropout > 0,
    )


def build_prior(config: Config, levels: Levels, classes: int) -> Prior:
    """The untrained prior of these levels, on the CPU, in float32."""
    network = config.prior.network
    kind = cast(type[Prior], imported(PRIORS.get(network.kind).network))
    return kind.of_levels(network, [level_of(config, index, classes) for index in levels], levels.start)
