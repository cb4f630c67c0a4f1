"""From a configuration to a model and how it learns."""

from __future__ import annotations

from typing import cast

from hrvqvae.config import Config
from hrvqvae.config.entries import SYSTEMS, System
from hrvqvae.config.registry import imported
from hrvqvae.errors import InputError
from hrvqvae.systems.base import Autoencoder
from hrvqvae.systems.objective import Objective, Place


def system_of(config: Config) -> System:
    """The system of a configuration. Raises InputError where no package has it, or one that it needs is missing."""
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
