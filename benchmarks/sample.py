"""Time the cached sampler against the plain sampler, and the drawing of decoded images, with random
weights.
"""

from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.common import (
    Row,
    as_script,
    finish,
    matrix_rate,
    median_seconds,
    options,
    parse_lines,
    positive,
)
from benchmarks.prior import draws, random_priors
from hrvqvae.config import level_names, presets
from hrvqvae.models.build import build
from hrvqvae.priors.base import Prior
from hrvqvae.priors.gpt import GPT
from hrvqvae.priors.pixelsnail import PixelSNAIL
from hrvqvae.priors.sampling import SamplingParams, draw_positions
from hrvqvae.training.state import count_parameters


def multiply_adds(prior: Prior) -> int:
    """Return the multiply-adds of a forward pass of an image, which any sampler computes, without
    small terms.
    """
    assert isinstance(prior, PixelSNAIL | GPT)
    height, width = prior.level.grid
    positions = height * width
    attentions = prior.attentions if isinstance(prior, PixelSNAIL) else prior.layers
    weights = sum(weight.numel() for weight in prior.parameters() if weight.dim() > 1)
    weights -= sum(
        module.weight.numel() for module in prior.modules() if isinstance(module, nn.Embedding)
    )
    attention = len(attentions) * 2 * prior.config.hidden_units * positions * (positions + 1) // 2
    return weights * positions + attention


def _make_row(
    method: str, drawn: str, priors: Sequence[Prior], batch: int, seconds: float, rate: float
) -> Row:
    return {
        "method": method,
        "drawn": drawn,
        "batch": batch,
        "parameters": sum(map(count_parameters, priors)),
        "seconds_per_image": seconds / batch,
        "floor_seconds": 2 * sum(map(multiply_adds, priors)) / rate,
    }


@torch.inference_mode()
def bench_levels(preset: str, index: int, rounds: int, positions: int, rate: float) -> list[Row]:
    """Return rows as `bench_sample`, of both samplers that draw an image's levels of a prior (1 is
    the coarsest).
    """
    config = presets.get(preset).config
    prior = random_priors(config)[index - 1]
    levels = config.prior_levels[index - 1]
    level = prior.level
    torch.manual_seed(0)
    shape = (1, *level.grid)
    codes = [torch.randint(entry.symbols, shape) for entry in prior.levels]
    coarser = [torch.randint(words, shape) for words in level.coarser]
    label = torch.randint(level.classes, (1,)) if level.classes else None
    uniforms = [torch.rand(shape, dtype=torch.float64) for _ in codes]
    arguments = (
        codes,
        [torch.zeros(shape, dtype=torch.bool)] * len(codes),
        coarser,
        label,
        uniforms,
        torch.ones(*level.grid, 1),
    )
    step = median_seconds(lambda: prior.level_logits(codes, coarser, label), positions)
    plain = sum(entry.numel() for entry in codes) * step
    cached = median_seconds(lambda: draw_positions(prior, *arguments, SamplingParams()), rounds)
    drawn = f"{preset}, {level_names(levels)}, {level.grid[0]}x{level.grid[1]}"
    return [
        {**_make_row("plain", drawn, [prior], 1, plain, rate), "timed_positions": positions},
        {**_make_row("cached", drawn, [prior], 1, cached, rate), "ratio": plain / cached},
    ]


def bench_images(preset: str, batch: int, rounds: int, rate: float) -> Row:
    """Return a row as `bench_sample`, of images of which all levels are drawn and decoded."""
    config = presets.get(preset).config
    model = build(config).eval().requires_grad_(False)
    priors = random_priors(config)
    draw = draws(model, priors, batch)
    size = config.data.image_size
    seconds = median_seconds(lambda: model.decode(draw(), size=size), rounds)
    return _make_row("cached", f"{preset}, decoded", priors, batch, seconds, rate)


def bench_sample(
    levels: Sequence[tuple[str, int]],
    images: Sequence[tuple[str, int]],
    rounds: int,
    positions: int,
) -> list[Row]:
    """Return rows with method, drawn, batch, parameters, seconds_per_image, floor_seconds.

    The plain sampler makes a forward pass per code: so many `positions` are timed, and the median
    is scaled to all. ratio is the plain time divided by the cached time. floor_seconds is the time
    of the multiply-adds of a forward pass of an image, at the rate of a large float32 matrix
    product in the same run.

    Args:
        levels: Presets, and the prior (1 is the coarsest) that both samplers draw from.
        images: Presets, and the batch of images that are drawn and decoded.
        rounds: Timed calls of each row.
        positions: Timed forward passes of the plain sampler.
    """
    rate = matrix_rate()
    rows = [
        row
        for preset, index in levels
        for row in bench_levels(preset, index, rounds, positions, rate)
    ]
    return rows + [bench_images(preset, batch, rounds, rate) for preset, batch in images]


COLUMNS = parse_lines("""
method: {method}
drawn: {drawn}
batch: {batch}
parameters: {parameters:,}
s per image: {seconds_per_image:.4f}
from positions: {timed_positions}
ratio: {ratio:.1f}
one forward pass at best: {floor_seconds:.4f}
""")


def _parse_pair(text: str) -> tuple[str, int]:
    """Parse PRESET:NUMBER."""
    preset, _, index = text.rpartition(":")
    return preset, positive(index)


def main(argv: Sequence[str] | None = None) -> None:
    """Time the samplers of presets, with random weights."""
    positions = (24, "of the plain sampler that are timed")
    parser = options(__doc__, rounds=(3, "calls of each row"), positions=positions)
    usual = [("hrvqvae/mnist", 1), ("hrvqvae/ffhq", 2)]
    text = "that both samplers draw"
    parser.add_argument(
        "--levels", type=_parse_pair, nargs="*", default=usual, metavar="PRESET:LEVEL", help=text
    )
    usual = [("hrvqvae/mnist", 1), ("hrvqvae/mnist", 64)]
    text = "of which whole images are drawn"
    parser.add_argument(
        "--images", type=_parse_pair, nargs="*", default=usual, metavar="PRESET:BATCH", help=text
    )
    arguments = parser.parse_args(argv)
    rows = bench_sample(arguments.levels, arguments.images, arguments.rounds, arguments.positions)
    finish(rows, COLUMNS, arguments.json)


if __name__ == "__main__":
    as_script(main)
