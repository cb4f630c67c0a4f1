"""Entropy models of random numbers, and codes to go with them; systems and images for them."""

from dataclasses import replace

import numpy as np
import torch

from hrvqvae.compression.entropy_model import EntropyModel
from hrvqvae.compression.hrv import ImageCodes, read, write
from hrvqvae.compression.levels import PartCoder
from hrvqvae.compression.network import EntropyNetwork, usual_contexts, usual_stop_contexts
from hrvqvae.config import Geometry
from hrvqvae.config.parsing import override
from hrvqvae.models.build import build
from hrvqvae.utils.errors import InputError
from tests.conftest import drawn_digits
from tests.trained_run import tiny_systems

WEIGHTS = "0123456789abcdef" * 2


def made_network(contexts, hidden, random=None, strength=200):
    random = random or np.random.default_rng(0)
    sets = contexts.sets
    symbols = contexts.num_symbols
    return EntropyNetwork(
        contexts,
        random.integers(-127, 128, (contexts.rows, hidden)).astype(np.int8),
        random.integers(-50, 300, hidden).astype(np.int32),
        random.integers(-strength, strength + 1, (sets, symbols, hidden)).astype(np.int16),
        random.integers(-20_000, 20_000, (sets, symbols)).astype(np.int32),
        8,
    )


PLAIN = Geometry(1, 0, (1,))  # a position per pixel


def made_entropy_model(
    symbols,
    geometry=PLAIN,
    hidden=4,
    seed=0,
    alike=(),
    strength=200,
    with_stops=False,
):
    """An entropy model; levels in `alike` have no network. With stops, positions may stop."""
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
    made = EntropyModel("made", WEIGHTS, geometry, tuple(symbols), tuple(networks))
    if not with_stops:
        return made
    stops = [
        made_network(usual_stop_contexts(level, symbols, grids), hidden, random, strength // 8)
        for level in range(1, len(symbols))
    ]
    return replace(made, stops=(None, *stops))


def random_codes(entropy_model, size, count, seed=0):
    layout = entropy_model.layout(size)
    codes = np.zeros((count, layout.begins[-1]), np.int32)
    absent = [None] * len(entropy_model.symbols)
    networks = entropy_model.networks or absent
    stops = entropy_model.stops or absent
    for level in range(len(entropy_model.symbols)):
        coder = PartCoder(layout, range(level, level + 1), networks, stops)
        length = 5 * int(layout.begins[-1]) + 16
        content = np.frombuffer(
            np.random.default_rng([seed, level]).bytes(count * length), np.uint8
        )
        for row, stream in zip(codes, content.reshape(count, length), strict=True):
            coder.decode(stream, 0, row)
    return codes


def files_of(
    entropy_model,
    size,
    count=1,
    seed=0,
):
    """Files of random codes; of version 2, of a quality each, if positions may stop."""
    codes = random_codes(entropy_model, size, count, seed)
    qualities = [row % 8 for row in range(count)] if entropy_model.stops else None
    return write(entropy_model, codes, size, qualities=qualities)


def read_one(entropy_model, content):
    """What is read of a file; what it was refused with is its fault."""
    try:
        return read(entropy_model, [content])[0]
    except InputError as error:
        return ImageCodes((0, 0), (), fault=str(error))


def flip_bit(content, index):
    changed = bytearray(content)
    changed[index // 8] ^= 1 << index % 8
    return bytes(changed)


def flat(codes):
    return np.concatenate([level_codes.reshape(-1) for level_codes in codes])


def untrained(config):
    torch.manual_seed(0)
    entropy_model = EntropyModel("x", "ab" * 16, config.model.geometry, config.model.num_symbols)
    return build(config).eval().requires_grad_(False), entropy_model


def single_grid(name, root):
    """A tiny system; `groups` has groups of two linked levels: a code is a child below the path
    within its group.
    """
    config = tiny_systems(root)["hrvqvae" if name == "groups" else name]
    changes = {"model.quantizer.levels": "4", "model.quantizer.linked": "2"}
    return override(config, changes) if name == "groups" else config


def digits(count=12):
    """(count, 1, 12, 12) uint8."""
    return torch.from_numpy(drawn_digits(count, 5, 12)[0]).unsqueeze(1)


def squared_errors(decoded, images):
    return (decoded - images / 255).square().flatten(1).sum(1)


TREE = made_entropy_model((3, 3, 3), Geometry(2, 2, (1, 1, 1)), seed=1)
GRIDS = made_entropy_model((5, 6), Geometry(4, 0, (1, 2)), seed=2)
FLAT = made_entropy_model((7,), Geometry(2, 0, (1,)), hidden=3, seed=3)
HALF = made_entropy_model((8, 4), Geometry(8, 0, (1, 1)), hidden=6, seed=4, alike=(1,))
# two parts in files of version 2
DEEP = made_entropy_model((8,) * 5, Geometry(2, 0, (1,) * 5), seed=5, with_stops=True)
ALL = {"tree": TREE, "grids": GRIDS, "flat": FLAT, "half": HALF, "deep": DEEP}
