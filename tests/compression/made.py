"""Entropy models of random numbers, and codes to go with them; systems and images for them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrvqvae.compression.choice import Choice
from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import ImageCodes, read, write
from hrvqvae.compression.levels import Layout, decode_level
from hrvqvae.compression.network import Contexts, EntropyNetwork, usual_contexts
from hrvqvae.config import Config, Geometry, Grid
from hrvqvae.config.parsing import override
from hrvqvae.models.base import Autoencoder
from hrvqvae.models.build import build
from hrvqvae.utils.errors import InputError
from tests.conftest import drawn_digits
from tests.trained_run import tiny_systems

WEIGHTS = "0123456789abcdef" * 2


def made_network(
    contexts: Contexts, hidden: int, random: np.random.Generator, strength: int = 200
) -> EntropyNetwork:
    sets = contexts.sets
    symbols = contexts.symbols[-1]
    return EntropyNetwork(
        contexts,
        random.integers(-127, 128, (contexts.rows, hidden)).astype(np.int8),
        random.integers(-50, 300, hidden).astype(np.int32),
        random.integers(-strength, strength + 1, (sets, symbols, hidden)).astype(np.int16),
        random.integers(-20_000, 20_000, (sets, symbols)).astype(np.int32),
        8,
    )


def made_entropy_model(
    symbols: Sequence[int],
    geometry: Geometry,
    hidden: int = 4,
    seed: int = 0,
    alike: Sequence[int] = (),
    strength: int = 200,
) -> EntropyModel:
    """An entropy model; levels in `alike` have no network."""
    random = np.random.default_rng(seed)
    grids = geometry.grids(1, 1)
    networks = [
        (
            None
            if level in alike
            else made_network(usual_contexts(level, symbols, grids), hidden, random, strength)
        )
        for level in range(len(symbols))
    ]
    return EntropyModel("made", WEIGHTS, geometry, tuple(symbols), tuple(networks))


def random_codes(
    entropy_model: EntropyModel, size: Grid, count: int, seed: int = 0
) -> NDArray[np.int32]:
    layout = entropy_model.layout(size)
    codes = np.zeros((count, layout.begins[-1]), np.int32)
    for level in range(len(entropy_model.symbols)):
        length = 5 * int(layout.begins[-1]) + 16
        content = np.frombuffer(
            np.random.default_rng([seed, level]).bytes(count * length), np.uint8
        )
        starts = np.arange(count) * length
        decode_level(
            content, starts, starts + length, codes, layout, level, entropy_model.network(level)
        )
    return codes


def files_of(
    entropy_model: EntropyModel,
    size: Grid,
    count: int = 1,
    seed: int = 0,
    levels: int | None = None,
) -> list[bytes]:
    return write(entropy_model, random_codes(entropy_model, size, count, seed), size, levels)


def read_one(entropy_model: EntropyModel, content: bytes) -> ImageCodes:
    """What is read of a file; what it was refused with is its fault."""
    try:
        return read(entropy_model, [content])[0]
    except InputError as error:
        return ImageCodes((0, 0), (), fault=str(error))


def bits_of(
    entropy_model: EntropyModel, size: Grid, codes: NDArray[np.int32], levels: int
) -> NDArray[np.float64]:
    """Of the codes (N, all codes) of the first levels of each image, as the models on one grid have
    them.
    """
    networks = [entropy_model.network(level) for level in range(levels)]
    layout = entropy_model.layout(size)
    layout = Layout(layout.grids[:levels], layout.symbols[:levels])
    images = np.ascontiguousarray(codes.reshape(len(codes), levels, -1))
    return Choice(layout, [network for network in networks if network], images).bits


def flat(codes: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([level_codes.reshape(-1) for level_codes in codes])


def untrained(config: Config) -> tuple[Autoencoder, EntropyModel]:
    torch.manual_seed(0)
    entropy_model = EntropyModel("x", "ab" * 16, config.model.geometry, config.model.num_symbols)
    return build(config).eval().requires_grad_(False), entropy_model


def single_grid(name: str, root: Path) -> Config:
    """A tiny system; `groups` has groups of two linked levels: a code is a child below the path
    within its group.
    """
    config = tiny_systems(root)["hrvqvae" if name == "groups" else name]
    changes = {"model.quantizer.levels": "4", "model.quantizer.linked": "2"}
    return override(config, changes) if name == "groups" else config


def digits(count: int = 12) -> Tensor:
    """(count, 1, 12, 12) uint8."""
    return torch.from_numpy(drawn_digits(count, 5, 12)[0]).unsqueeze(1)


def squared_errors(decoded: Tensor, images: Tensor) -> Tensor:
    return (decoded - images / 255).square().flatten(1).sum(1)


TREE = made_entropy_model((3, 3, 3), Geometry(2, 2, (1, 1, 1)), seed=1)
GRIDS = made_entropy_model((5, 6), Geometry(4, 0, (1, 2)), seed=2)
FLAT = made_entropy_model((7,), Geometry(2, 0, (1,)), hidden=3, seed=3)
HALF = made_entropy_model((8, 4), Geometry(8, 0, (1, 1)), hidden=6, seed=4, alike=(1,))
ALL = {"tree": TREE, "grids": GRIDS, "flat": FLAT, "half": HALF}
