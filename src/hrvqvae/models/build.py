"""Build a model, its objective and its further decoders from a configuration."""

import copy
from pkgutil import resolve_name

from hrvqvae.config import Config
from hrvqvae.config.registry import SYSTEMS
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.blocks import ConditionalDecoder, Refiner
from hrvqvae.models.objective import Objective
from hrvqvae.models.single_grid import SingleGridAutoencoder
from hrvqvae.utils.errors import InputError


def build(config: Config) -> Autoencoder:
    """Build the untrained model of a configuration, on the CPU, in float32. Raises InputError if
    there is no such system.
    """
    model = resolve_name(SYSTEMS.get(config.model.system).model)
    return model(config.model, config.data.channels)


def build_objective(config: Config) -> Objective:
    """Build the objective of a configuration, on the CPU. Raises InputError as `build` and
    `Objective`.
    """
    objective = resolve_name(SYSTEMS.get(config.model.system).objective)
    return objective(config)


def require_several_levels(model: Autoencoder, config: Config) -> SingleGridAutoencoder:
    """Return the model. Raises InputError unless it has several levels on one grid, as progressive
    decoders need.
    """
    if not isinstance(model, SingleGridAutoencoder) or len(model.prefixes) < 2:
        title = SYSTEMS.get(config.model.system).title
        raise InputError(
            f"{title} has no progressive decoder: that takes several levels on one grid"
        )
    return model


def build_progressive_decoder(
    model: SingleGridAutoencoder, config: Config, num_classes: int | None = None
) -> ConditionalDecoder:
    """Build the untrained progressive decoder of a model: a refiner, on the CPU, then a copy of the
    decoder. Its cases are the numbers of levels of positions, or classes if their number is given.
    """
    cases = len(model.prefixes) if num_classes is None else num_classes + 1
    refiner = Refiner(config.progressive.network, model.quantizer.config.dim, cases)
    decoder = copy.deepcopy(model.decoder).requires_grad_(True)
    return ConditionalDecoder(refiner, decoder, num_classes)


def build_sample_decoder(model: SingleGridAutoencoder, config: Config) -> ConditionalDecoder:
    """Build the untrained decoder of samples of a model: a refiner, on the CPU, then a progressive
    decoder. Its cases are the classes.
    """
    classes = config.generation.classes
    refiner = Refiner(config.generation.network, model.quantizer.config.dim, classes + 1)
    decoder = build_progressive_decoder(model, config, classes)
    return ConditionalDecoder(refiner, decoder, classes)
