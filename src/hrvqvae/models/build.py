"""From a configuration to a model and how it learns."""

from __future__ import annotations

import copy
from typing import cast

from hrvqvae.config import Config
from hrvqvae.config.registry import SYSTEMS, System, imported
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.blocks import ProgressiveDecoder, Refiner
from hrvqvae.models.objective import Objective, Place
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.utils.errors import InputError


def system_of(config: Config) -> System:
    """The system of a configuration. Raises InputError where it, or a package that it needs, is not installed."""
    system = SYSTEMS.get(config.model.system)
    if not system.available:
        raise InputError(f"{system.title} needs {system.needs[0]}: pip install '{system.needs[1]}'")
    return system


def build(config: Config) -> Autoencoder:
    """The untrained model that a configuration describes, on the CPU, in float32. Raises as `system_of`."""
    model = imported(system_of(config).model)
    return cast(Autoencoder, model(config.model, config.data.channels))


def build_objective(model: Autoencoder, config: Config, place: Place) -> Objective:
    """How the model of a configuration learns. Raises as `system_of`, and what the objective raises."""
    return cast(Objective, imported(system_of(config).objective)(model, config, place))


def several_levels(model: Autoencoder, config: Config) -> SingleGridAutoencoder:
    """The model. Raises InputError where it has not several levels on one grid, as a progressive decoder needs."""
    if not isinstance(model, SingleGridAutoencoder) or len(model.prefixes) < 2:
        title = system_of(config).title
        raise InputError(f"{title} has no prefixes for a decoder of their own: it has not several levels on one grid")
    return model


def build_progressive_decoder(model: SingleGridAutoencoder, config: Config) -> ProgressiveDecoder:
    """The untrained decoder of a model's prefixes, on the model's device; it decodes as the model's own does."""
    network = config.progressive.network
    refiner = Refiner(
        dim=model.latent_dim, hidden=network.hidden_units, blocks=network.residual_blocks, kernel=network.kernel,
        cases=len(model.prefixes) - 1,
    )  # fmt: skip
    device = next(model.decoder.parameters()).device
    return ProgressiveDecoder(refiner.to(device), copy.deepcopy(model.decoder)).requires_grad_(True)
