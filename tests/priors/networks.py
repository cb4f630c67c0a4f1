"""Small priors of random weights, their levels and codes."""

from pkgutil import resolve_name

import numpy as np
import torch

from hrvqvae.config.registry import PRIORS
from hrvqvae.priors.base import Level
from hrvqvae.priors.configs import GPTConfig, PixelSNAILConfig
from tests.conftest import generator, parametrize

SMALL = GPTConfig(hidden_units=12, layers=2, heads=3, dropout=0.3, path_units=5, output="choices")
SUMS = SMALL.replace(output="sums")


def network(**changes):
    fields = {
        "hidden_units": 8,
        "residual_units": 6,
        "residual_blocks": 3,
        "attention_layers": (2,),
        "attention_heads": 2,
        "kernel": 5,
        "dropout": (0.3,),
    }
    return PixelSNAILConfig(**{**fields, **changes})


of_each_kind = parametrize(
    "config", [network(), SMALL, SUMS], ids=["pixelsnail", "choices", "sums"]
)


def random_prior(config, *levels, seed=0):
    """A prior in evaluation mode whose weights are large enough that everything matters."""
    torch.manual_seed(seed)
    prior = resolve_name(PRIORS.get(config.kind).network)(config, *levels)
    for parameter in prior.eval().requires_grad_(False).parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    return prior


def levels_of(grid, symbols, *, coarser=(), **options):
    """The levels of a tree, below `coarser` ones, to which they are not linked."""
    codewords = np.cumprod(symbols).tolist()
    return [
        Level(
            grid=grid,
            symbols=count,
            coarser=(*coarser, *codewords[:index]),
            codewords=codewords[index],
            **options,
        )
        for index, count in enumerate(symbols)
    ]


def level_of(**fields):
    return Level(**{"grid": (3, 4), "symbols": 3} | fields)


def inputs(level, batch, seed=0):
    """Random codes of a level and of its coarser ones, and labels."""
    rng = generator(seed)
    codes, *coarser = (
        torch.randint(symbols, (batch, *level.grid), generator=rng)
        for symbols in (level.symbols, *level.coarser)
    )
    label = torch.randint(level.classes, (batch,), generator=rng) if level.classes else None
    return codes, coarser, label


def random_codes(levels, batch, seed=0):
    rng = generator(seed)
    return [torch.randint(level.symbols, (batch, *level.grid), generator=rng) for level in levels]


def change_code(codes, place, symbols):
    """Return codes with another one at a place of the first image."""
    changed = codes.clone()
    changed.view(-1)[place] = (changed.view(-1)[place] + 1) % symbols
    return changed
